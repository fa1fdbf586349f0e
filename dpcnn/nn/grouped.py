"""Convolutions of single pixels, whole images, single channels and groups of channels. Shapes: see layer.py."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, empty
from dpcnn.nn.convolution import Kernel, bands, flat, padded, strided


class Pointwise:
    """A convolution with a kernel of 1x1 and no padding: one product of matrices."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        taken = x
        if self.stride > 1:
            taken = empty((*y.shape[:3], x.shape[-1]), x.dtype)
            np.copyto(taken, x[:: self.stride, :: self.stride])
        np.matmul(flat(taken), w[0, 0], out=flat(y))
        return taken

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        np.matmul(flat(saved).T, flat(dy), out=dw[0, 0])
        if dx is None:
            return
        if self.stride == 1:
            np.matmul(flat(dy), w[0, 0].T, out=flat(dx))
            return
        taken = empty(saved.shape, dx.dtype)
        np.matmul(flat(dy), w[0, 0].T, out=flat(taken))
        dx[...] = 0
        dx[:: self.stride, :: self.stride] = taken


class Whole:
    """A convolution with a kernel as large as the image, without padding: the sum of one product per pixel.

    In the comments, P is the number of pixels.
    """

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        products = empty((len(w) * w.shape[1], *y.shape[2:]), x.dtype)
        # (P, N, C) x (P, C, F) -> (P, N, F)
        np.matmul(one_axis(x), one_axis(w), out=products)
        np.sum(products, axis=0, out=y[0, 0])
        return x

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        # (P, C, N) x (N, F) -> (P, C, F)
        np.matmul(one_axis(saved).swapaxes(1, 2), dy[0, 0], out=one_axis(dw))
        if dx is not None:
            # (N, F) x (P, F, C) -> (P, N, C)
            np.matmul(dy[0, 0], one_axis(w).swapaxes(1, 2), out=one_axis(dx))


def one_axis(x: Array) -> Array:
    """Contiguous (H, W, ..) with one axis for all pixels: (H W, ..)."""
    return x.reshape(-1, *x.shape[2:])


class Depthwise:
    """A kernel of its own for each channel, ``w`` (KH, KW, 1, C): Chollet, "Xception" (2017), section 2.

    At each position of the kernel, the pixels of a band of output rows are multiplied by one weight per channel.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        (H, W, N, _), p = x.shape, self.padding
        image = padded(x, p, (H + 2 * p, W + 2 * p))
        weights = self._repeated(w, N)
        most = empty(y[self._bands(y)[0]].shape, y.dtype)
        for rows in self._bands(y):
            product = most[: rows.stop - rows.start]
            for number, position in enumerate(self._positions(rows, y.shape[1])):
                if number == 0:
                    np.multiply(image[position], weights[0], out=y[rows])
                else:
                    y[rows] += np.multiply(image[position], weights[number], out=product)
        return image

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        N, C, p = *dy.shape[2:], self.padding
        weights, sums = self._repeated(w, N), empty((w[..., 0, 0].size, N * C), w.dtype)
        spread = None if dx is None else empty(saved.shape, dy.dtype)
        sums[...] = 0
        if spread is not None:
            spread[...] = 0
        most = empty(dy[self._bands(dy)[0]].shape, dy.dtype)
        for rows in self._bands(dy):
            product = most[: rows.stop - rows.start]
            for number, position in enumerate(self._positions(rows, dy.shape[1])):
                np.multiply(saved[position], dy[rows], out=product)
                sums[number] += product.reshape(-1, N * C).sum(axis=0)
                if spread is not None:
                    spread[position] += np.multiply(dy[rows], weights[number], out=product)
        dw[...] = sums.reshape(-1, N, C).sum(axis=1).reshape(w.shape)
        if dx is not None and spread is not None:
            dx[...] = spread[p : p + dx.shape[0], p : p + dx.shape[1]]

    def _bands(self, y: Array) -> list[slice]:
        return [slice(lo, hi) for lo, hi in bands(len(y), y[0].nbytes)]

    def _positions(self, rows: slice, OW: int) -> list[tuple[slice, slice]]:
        """For each position of the kernel, row by row, the pixels of the image under it for some output rows."""
        d, s, count = self.dilation, self.stride, rows.stop - rows.start
        return [
            (strided(rows.start * s + i * d, count, s), strided(j * d, OW, s)) for i, j in np.ndindex(self.kernel_size)
        ]

    def _repeated(self, w: Array, N: int) -> Array:
        """The weights of each position for all images: (KH * KW, N, C), as long runs are faster than broadcasting."""
        repeated = empty((w[..., 0, 0].size, N, w.shape[-1]), w.dtype)
        repeated[...] = w.reshape(-1, 1, w.shape[-1])
        return repeated


class Grouped:
    """Groups of channels, each with filters of its own: Krizhevsky, Sutskever and Hinton, "ImageNet classification with
    deep convolutional neural networks" (2012), section 3.5. ``w`` is (KH, KW, C / groups, F)."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = kernels

    def forward(self, x: Array, w: Array, y: Array) -> list[Any]:
        saved = []
        for number, kernel in enumerate(self.kernels):
            part = self._empty(y, number)
            saved.append(kernel.forward(self._copy(x, number), self._copy(w, number), part))
            self._channels(y, number)[...] = part
        return saved

    def backward(self, saved: list[Any], dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        for number, kernel in enumerate(self.kernels):
            part_dw = self._empty(dw, number)
            part_dx = None if dx is None else self._empty(dx, number)
            kernel.backward(saved[number], self._copy(dy, number), self._copy(w, number), part_dw, part_dx)
            self._channels(dw, number)[...] = part_dw
            if dx is not None and part_dx is not None:
                self._channels(dx, number)[...] = part_dx

    def _channels(self, array: Array, number: int) -> Array:
        """The channels, or filters, of a group: the last axis."""
        width = array.shape[-1] // len(self.kernels)
        return array[..., number * width : (number + 1) * width]

    def _empty(self, array: Array, number: int) -> Array:
        """A contiguous array for a group's channels."""
        return empty(self._channels(array, number).shape, array.dtype)

    def _copy(self, array: Array, number: int) -> Array:
        """A contiguous copy of a group's channels."""
        copy = self._empty(array, number)
        np.copyto(copy, self._channels(array, number))
        return copy
