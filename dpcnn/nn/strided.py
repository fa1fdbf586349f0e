"""Convolutions with a stride or dilation, as convolutions without, over other images. Shapes: see layer.py."""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import Kernel, inside
from dpcnn.nn.layer import Memory

SHORT_RUN = 8
"""With fewer channels, NumPy copies a phase of an image faster channel by channel; with more, all of them at once."""


class Strided:
    """A convolution with stride s: the same products as those of a convolution with stride 1 by another kernel.

    The padded image is divided into blocks of s by s pixels. A block becomes a pixel with s^2 C channels ("space to
    depth"), and the kernel of r by r becomes one of q by q blocks, q = ceil(r / s), with zeros at its end.

    In the comments, the image has h by v blocks; channels are ordered by the pixel of their block, then as before.
    """

    def __init__(self, plain: Kernel, output: tuple[int, int], kernel_size: int, stride: int, padding: int) -> None:
        """``plain``: the kernel for images (h, v, s s C), q by q, with stride 1; ``output``: (OH, OW)."""
        self.plain, self.r, self.stride, self.padding = plain, kernel_size, stride, padding
        self.q = blocks(kernel_size, stride)
        self.size = output[0] + self.q - 1, output[1] + self.q - 1  # h, v

    def memory(self, shape: Shape, output: Shape) -> Memory:
        image = *self.size, self.stride**2 * shape[-1]
        needs, size = self.plain.memory(image, output), prod(image)
        return Memory(
            needs.kept + needs.keeps_input * size,
            needs.forward + size,
            needs.backward + size,
            weights=needs.weights + 2 * self.q**2 * image[-1] * output[-1],
        )

    def forward(self, x: Array, w: Array, y: Array) -> tuple[Any, Shape]:
        (_, _, N, C), s = x.shape, self.stride
        image = empty((*self.size, N, s * s * C), x.dtype)
        for strip in self._border(x.shape):
            image[strip] = 0
        for in_blocks, in_pixels in self._pairs(image, x):
            np.copyto(in_blocks, in_pixels)
        return self.plain.forward(image, self._in_blocks(w), y), x.shape

    def backward(self, saved: tuple[Any, Shape], dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (of_plain, shape), (r, _, C, F), s, q = saved, w.shape, self.stride, self.q
        dkernel = empty((q, q, s * s * C, F), w.dtype)
        dimage = None if dx is None else empty((*self.size, shape[2], s * s * C), dy.dtype)
        self.plain.backward(of_plain, dy, self._in_blocks(w), dkernel, dimage)
        # (q, q, s, s, C, F) -> (q s, q s, C, F)
        dw[...] = dkernel.reshape(q, q, s, s, C, F).swapaxes(1, 2).reshape(q * s, q * s, C, F)[:r, :r]
        if dx is not None and dimage is not None:
            if any(s * side < length + self.padding for side, length in zip(self.size, shape[:2], strict=True)):
                dx[...] = 0  # no window reaches its last pixels
            for in_blocks, in_pixels in self._pairs(dimage, dx):
                np.copyto(in_pixels, in_blocks)

    def _in_blocks(self, w: Array) -> Array:
        """A kernel (r, r, C, F) as (q, q, s s C, F)."""
        (r, _, C, F), s, q = w.shape, self.stride, self.q
        whole = np.zeros((q * s, q * s, C, F), w.dtype)
        whole[:r, :r] = w
        return whole.reshape(q, s, q, s, C, F).swapaxes(1, 2).reshape(q, q, s * s * C, F)

    def _pairs(self, image: Array, x: Array) -> Iterator[tuple[Array, Array]]:
        """Views of the same pixels in an image of blocks and in an image (H, W, N, C).

        With long runs, all whole blocks are one pair, (.., .., N, s, s, C).
        """
        (_, _, N, C), s, p = x.shape, self.stride, self.padding
        if C < SHORT_RUN:
            yield from self._phases(image, x, slice(0, self.size[0]), slice(0, self.size[1]))
            return
        rows, columns = self._whole_blocks(x.shape)
        if rows.start < rows.stop and columns.start < columns.stop:
            pixels = x[tuple(slice(side.start * s - p, side.stop * s - p) for side in (rows, columns))]
            split = pixels.reshape(rows.stop - rows.start, s, columns.stop - columns.start, s, N, C)
            whole = image[rows, columns]
            yield whole.reshape(*whole.shape[:3], s, s, C), split.transpose(0, 2, 4, 1, 3, 5)
        for strip in self._border(x.shape):
            yield from self._phases(image, x, *strip)

    def _whole_blocks(self, shape: Shape) -> tuple[slice, slice]:
        """The rows and the columns of the blocks that lie within an image of ``shape``, (H, W, ..)."""
        s, p = self.stride, self.padding
        first, ends = -(-p // s), (min(count, (side + p) // s) for count, side in zip(self.size, shape, strict=False))
        rows, columns = (slice(first, max(first, end)) for end in ends)
        return rows, columns

    def _border(self, shape: Shape) -> list[tuple[slice, slice]]:
        """The rows and the columns of the other blocks, as four strips."""
        (h, w), (rows, columns) = self.size, self._whole_blocks(shape)
        return [
            (slice(0, rows.start), slice(0, w)),
            (slice(rows.stop, h), slice(0, w)),
            (rows, slice(0, columns.start)),
            (rows, slice(columns.stop, w)),
        ]

    def _phases(self, image: Array, x: Array, rows: slice, columns: slice) -> Iterator[tuple[Array, Array]]:
        """The pixels of some blocks that have the same place in their block, or one of their channels."""
        (H, W, _, C), s, p = x.shape, self.stride, self.padding
        blocks, run = image[rows, columns], 1 if C < SHORT_RUN else C
        for i, j in np.ndindex(s, s):
            down = inside(rows.start * s + i - p, rows.stop - rows.start, H, s)
            across = inside(columns.start * s + j - p, columns.stop - columns.start, W, s)
            for first in range(0, C, run):
                start = (i * s + j) * C + first
                own = blocks[down[0], across[0], :, start : start + run]
                yield own, x[down[1], across[1], :, first : first + run]


def blocks(kernel_size: int, stride: int) -> int:
    """The number of blocks of ``stride`` pixels that a kernel's side spans."""
    return -(-kernel_size // stride)


class Dilated:
    """A convolution with dilation d, as one without: Chen et al., "DeepLab" (2018), section 3.1, after Shensa (1992).

    The pixels of the padded image that lie d apart are an image of their own ("space to batch"): one of d^2, of h by v.
    """

    def __init__(self, plain: Kernel, size: tuple[int, int], dilation: int, padding: int) -> None:
        """``plain``: the kernel for images of ``size``, (h, v), without padding."""
        self.plain, self.size, self.dilation, self.padding = plain, size, dilation, padding

    def memory(self, shape: Shape, output: Shape) -> Memory:
        taps = [(n + 2 * self.padding - o) // self.dilation for n, o in zip(shape, output[:2], strict=False)]
        sides, images = [n - k for n, k in zip(self.size, taps, strict=True)], self.dilation**2
        needs = self.plain.memory((*self.size, shape[-1]), (*sides, output[-1]))
        x, y = images * prod(self.size) * shape[-1], images * prod(sides) * output[-1]
        return Memory(
            images * needs.kept + needs.keeps_input * x,
            images * needs.forward + x + y,
            images * needs.backward + x + y,
            weights=needs.weights,
        )

    def forward(self, x: Array, w: Array, y: Array) -> Any:
        outputs = self._empty(self._output(w), y)
        saved = self.plain.forward(merged(self._divided(x, self.size, self.padding)), w, merged(outputs))
        self._join(outputs, y, 0)
        return saved

    def backward(self, saved: Any, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        dimages = None if dx is None else self._empty(self.size, dx)
        dys = merged(self._divided(dy, self._output(w), 0))
        self.plain.backward(saved, dys, w, dw, None if dimages is None else merged(dimages))
        if dx is not None and dimages is not None:
            self._join(dimages, dx, self.padding)

    def _output(self, w: Array) -> tuple[int, int]:
        """The size of the outputs of the d^2 images."""
        return self.size[0] - len(w) + 1, self.size[1] - w.shape[1] + 1

    def _empty(self, size: tuple[int, int], image: Array) -> Array:
        return empty((*size, self.dilation, self.dilation, *image.shape[2:]), image.dtype)

    def _divided(self, image: Array, size: tuple[int, int], padding: int) -> Array:
        """An image (H, W, N, C) as d^2 images of a size, (*size, d, d, N, C), with zeros beyond its border."""
        images = self._empty(size, image)
        images[...] = 0
        for place, pixels in self._places(image.shape, size, padding):
            images[place] = image[pixels]
        return images

    def _join(self, images: Array, image: Array, padding: int) -> None:
        """Fill ``image``, the reverse of :meth:`_divided`."""
        for place, pixels in self._places(image.shape, images.shape[:2], padding):
            image[pixels] = images[place]

    def _places(self, shape: Shape, size: Shape, padding: int) -> Iterator[tuple[tuple[Any, ...], tuple[slice, slice]]]:
        """For each of the d^2 images: the place in it of pixels of the image (H, W, N, C), and these pixels."""
        for i, j in np.ndindex(self.dilation, self.dilation):
            rows, from_rows = inside(i - padding, size[0], shape[0], self.dilation)
            columns, from_columns = inside(j - padding, size[1], shape[1], self.dilation)
            yield (rows, columns, i, j), (from_rows, from_columns)


def merged(images: Array) -> Array:
    """(h, v, d, d, N, C) as (h, v, d d N, C)."""
    return images.reshape(*images.shape[:2], -1, images.shape[-1])
