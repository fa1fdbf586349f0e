"""Convolutions of single pixels, whole images, single channels and groups of channels. Shapes: see layer.py."""

from collections.abc import Sequence
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import Kernel, bands, extent, flat, gathered, phases, pixels, reach, region
from dpcnn.nn.layer import Memory

SUMMED = 1 << 10
"""The most pixels over which the gradient of a weight is added up one after the other."""


class Pointwise:
    """A convolution with a kernel of 1x1 and no padding: one product of matrices."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    def memory(self, shape: Shape, output: Shape) -> Memory:
        size = prod(output[:2]) * shape[-1] if self.stride > 1 else 0
        return Memory(size, backward=size, keeps_input=self.stride == 1)

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

    def memory(self, shape: Shape, output: Shape) -> Memory:
        return Memory(forward=prod(shape[:2]) * output[-1], keeps_input=True)

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

    A window is multiplied by the weights, and added up over the positions of the kernel, in one pass of NumPy's einsum,
    all M = N C values of a pixel at a time. The gradient of the input is such a sum too: of ``dy``, with stride 1, for
    each :class:`~dpcnn.nn.convolution.Phase`.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def memory(self, shape: Shape, output: Shape) -> Memory:
        (H, W, C), s, p, d = shape, self.stride, self.padding, self.dilation
        size = prod(s * (n - 1) + extent(k, d) for n, k in zip(output, self.kernel_size, strict=False)) * C
        (top, bottom), (left, right) = (
            reach(phases(n, k, s, p, d), d // gcd(s, d)) for n, k in zip((H, W), self.kernel_size, strict=True)
        )
        return Memory(size, backward=(bottom - top) * (right - left) * C)

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        (KH, KW), (OH, OW), s, p, d = self.kernel_size, y.shape[:2], self.stride, self.padding, self.dilation
        image = region(x, (-p, -p), (s * (OH - 1) + extent(KH, d), s * (OW - 1) + extent(KW, d)))
        multiply(windows(image, (OH, OW), (KH, KW), s, d), for_images(w, y.shape[2]), pixels(y))
        return image

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        size, N, C = dy.shape[:2], *dy.shape[2:]
        seen = windows(saved, size, self.kernel_size, self.stride, self.dilation)
        sums, share = np.zeros((2, *self.kernel_size, N * C), dy.dtype)
        for rows in (slice(*band) for band in bands(size[0], size[1], SUMMED)):
            # (rows, OW, KH, KW, M) x (rows, OW, M) -> (KH, KW, M)
            sums += np.einsum("hvijm,hvm->ijm", seen[rows], pixels(dy)[rows], out=share)
        np.sum(sums.reshape(*self.kernel_size, N, C), axis=2, out=dw[:, :, 0])
        if dx is not None:
            self._input_gradient(dy, for_images(w, N), pixels(dx))

    def _input_gradient(self, dy: Array, weights: Array, dx: Array) -> None:
        """Fill ``dx``, (H, W, M), for ``weights`` (KH, KW, M)."""
        (KH, KW), s, p, d = self.kernel_size, self.stride, self.padding, self.dilation
        down, across, spacing = phases(dx.shape[0], KH, s, p, d), phases(dx.shape[1], KW, s, p, d), d // gcd(s, d)
        (top, bottom), (left, right) = reach(down, spacing), reach(across, spacing)
        image = region(dy, (top, left), (bottom - top, right - left))
        for i, j in product(down, across):
            target, taps = dx[i.pixels, j.pixels], (len(i.taps), len(j.taps))
            if all(taps):
                own = image[i.first - top :, j.first - left :]
                multiply(windows(own, target.shape[:2], taps, 1, spacing), weights[i.taps][:, j.taps], target)
            else:
                target[...] = 0


def windows(image: Array, size: tuple[int, int], kernel_size: tuple[int, int], stride: int, dilation: int) -> Array:
    """The windows of an image (.., .., N, C), from its first pixel on: (*size, *kernel_size, M), without copies."""
    (row, column, _, value), s, d = image.strides, stride, dilation
    shape = (*size, *kernel_size, image.shape[2] * image.shape[3])
    return as_strided(image, shape, (s * row, s * column, d * row, d * column, value), writeable=False)


def multiply(windows: Array, weights: Array, y: Array) -> None:
    """Fill ``y`` (OH, OW, M) with windows (OH, OW, KH, KW, M) times weights (KH, KW, M), summed over the positions."""
    np.einsum("hvijm,ijm->hvm", windows, weights, out=y)


def for_images(w: Array, N: int) -> Array:
    """The weights (KH, KW, 1, C) of each position for all images, (KH, KW, M), as long runs are faster."""
    KH, KW, _, C = w.shape
    weights = empty((KH, KW, N * C), w.dtype)
    weights.reshape(KH, KW, N, C)[...] = w
    return weights


class Grouped:
    """Groups of channels, each with filters of its own: Krizhevsky, Sutskever and Hinton, "ImageNet classification with
    deep convolutional neural networks" (2012), section 3.5. ``w`` is (KH, KW, C / groups, F).

    A part, some neighbouring groups, has one kernel, with zeros between channels and filters of different groups:
    products for few channels are so slow that more multiplications take less time.
    """

    def __init__(self, kernels: Sequence[Kernel], parts: Sequence[tuple[int, int]]) -> None:
        """``parts``: the groups of each kernel, (start, stop)."""
        self.kernels, self.parts, self.groups = kernels, parts, parts[-1][1]

    def memory(self, shape: Shape, output: Shape) -> Memory:
        kept, forward, backward, weights = 0.0, 0.0, 0.0, 0
        for kernel, (start, stop) in zip(self.kernels, self.parts, strict=True):
            C, F = ((stop - start) * side[-1] // self.groups for side in (shape, output))
            needs = kernel.memory((*shape[:2], C), (*output[:2], F))
            x, y = prod(shape[:2]) * C, prod(output[:2]) * F
            kept += needs.kept + needs.keeps_input * x
            forward = max(forward, x + y + needs.forward)
            backward = max(backward, x + y + needs.backward)
            weights = max(weights, needs.weights)
        return Memory(kept, forward, backward, weights=weights)

    def forward(self, x: Array, w: Array, y: Array) -> list[Any]:
        saved = []
        for kernel, part in zip(self.kernels, self.parts, strict=True):
            out = self._empty(y, part)
            saved.append(kernel.forward(gathered(self._channels(x, part)), self._whole(w, part), out))
            self._channels(y, part)[...] = out
        return saved

    def backward(self, saved: list[Any], dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        for kernel, part, own in zip(self.kernels, self.parts, saved, strict=True):
            whole = self._whole(w, part)
            part_dw, part_dx = empty(whole.shape, dw.dtype), None if dx is None else self._empty(dx, part)
            kernel.backward(own, gathered(self._channels(dy, part)), whole, part_dw, part_dx)
            self._by_groups(dw, part)[...] = diagonal(part_dw, part[1] - part[0])
            if dx is not None and part_dx is not None:
                self._channels(dx, part)[...] = part_dx

    def _channels(self, array: Array, part: tuple[int, int]) -> Array:
        """The channels, or filters, of a part: the last axis."""
        start, stop = (group * (array.shape[-1] // self.groups) for group in part)
        return array[..., start:stop]

    def _empty(self, array: Array, part: tuple[int, int]) -> Array:
        """A contiguous array for a part's channels."""
        return empty(self._channels(array, part).shape, array.dtype)

    def _whole(self, w: Array, part: tuple[int, int]) -> Array:
        """The weights of a part's kernel: between all its channels and all its filters."""
        KH, KW, channels, filters = self._channels(w, part).shape
        groups = part[1] - part[0]
        whole = np.zeros((KH, KW, groups * channels, filters), w.dtype)
        diagonal(whole, groups)[...] = self._by_groups(w, part)
        return whole

    def _by_groups(self, w: Array, part: tuple[int, int]) -> Array:
        """A part's weights, a view: (KH, KW, C / groups, groups of the part, F / groups)."""
        own = self._channels(w, part)
        return own.reshape(*own.shape[:-1], part[1] - part[0], -1)


def diagonal(whole: Array, groups: int) -> Array:
    """The weights between channels and filters of the same group, a view: (KH, KW, C / groups, groups, F / groups)."""
    KH, KW, channels, _ = whole.shape
    found: Array = np.einsum("ijgcgf->ijcgf", whole.reshape(KH, KW, groups, channels // groups, groups, -1))
    return found
