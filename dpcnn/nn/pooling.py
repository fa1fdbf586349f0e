"""Pooling: one value for each window of a channel. Shapes: see layer.py."""

from collections.abc import Mapping

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty, masked
from dpcnn.base.rng import SampleRng
from dpcnn.nn.convolution import bands, output_length, strided
from dpcnn.nn.layer import MOST_KERNEL_SIZE, Backward, Layer, at_least, at_most

CACHED = 1 << 20
"""The largest size in bytes of a band of output rows: the rows that its windows cover stay in the processor's cache."""


class Pool2d(Layer):
    """Windows of ``kernel_size`` by ``kernel_size``, ``stride`` apart, over images with ``padding`` on all sides."""

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        self.padding = padding
        at_least(1, kernel_size=self.kernel_size, stride=self.stride)
        at_most(MOST_KERNEL_SIZE, kernel_size=self.kernel_size**2)
        at_least(0, padding=padding)
        at_most(kernel_size // 2, padding=padding)

    def build(self, shape: Shape) -> Shape:
        H, W, C = shape
        sides = self.kernel_size, self.stride, self.padding
        self.output = output_length(H, *sides), output_length(W, *sides)
        return *self.output, C

    def padded(self, x: Array, value: float) -> Array:
        """``x``, inside a border of ``value`` if there is padding."""
        if not self.padding:
            return x
        (H, W, N, C), p = x.shape, self.padding
        image = empty((H + 2 * p, W + 2 * p, N, C), x.dtype)
        image[...] = value
        self.inner(image)[...] = x
        return image

    def inner(self, image: Array) -> Array:
        """A padded image without its border."""
        p = self.padding
        return image[p : len(image) - p, p : image.shape[1] - p]

    def places(self, start: int, stop: int) -> list[tuple[slice, slice]]:
        """For each position in a window, row by row, the pixels at this position in the windows of some output rows."""
        s, (_, OW) = self.stride, self.output
        return [
            (strided(start * s + i, stop - start, s), strided(j, OW, s))
            for i, j in np.ndindex(self.kernel_size, self.kernel_size)
        ]

    def without_border(self, dx: Array) -> Array:
        """The gradient of the image, contiguous, from that of the padded image."""
        if not self.padding:
            return dx
        inner = empty(self.inner(dx).shape, dx.dtype)
        np.copyto(inner, self.inner(dx))
        return inner


class MaxPool2d(Pool2d):
    """The largest value of each window; its gradient goes to the first position that holds it."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        x = self.padded(x, -np.inf)
        H, W, N, C = x.shape
        OH, OW = self.output
        y, windows = empty((OH, OW, N, C), x.dtype), self.kernel_size**2
        larger = empty((OH, windows - 1, OW, N, C), np.dtype(bool))
        sides = bands(OH, y[0].nbytes, CACHED)
        for start, stop in sides:
            (first, *others), rows = self.places(start, stop), y[start:stop]
            largest = x[first]  # (rows, OW, N, C)
            for number, position in enumerate(others):
                np.greater(x[position], largest, out=larger[start:stop, number])  # than at all positions before
                largest = np.maximum(largest, x[position], out=rows)
            if not others:
                np.copyto(rows, largest)  # a later layer may write over the output, but not over the input

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx = empty((H, W, N, C), dy.dtype)
            tiled = self.stride == self.kernel_size and (OH * self.kernel_size, OW * self.kernel_size) == (H, W)
            if not tiled:
                dx[...] = 0
            for start, stop in sides:
                rows, free = dy[start:stop], empty(dy[start:stop].shape, np.dtype(bool))  # (rows, OW, N, C)
                share = None if tiled else empty(rows.shape, dy.dtype)
                (first, *others), free[...] = self.places(start, stop), True
                for number, position in reversed(list(enumerate(others))):
                    largest = larger[start:stop, number]
                    largest &= free  # of the positions that are larger than all before, the last one
                    free ^= largest
                    give(rows, largest, dx[position], share)
                give(rows, free, dx[first], share)
            return self.without_border(dx)

        return y, backward


def give(dy: Array, mask: Array, dx: Array, share: Array | None) -> None:
    """Add ``dy`` where ``mask`` is true to ``dx``, by way of ``share``; None: ``dx`` is not initialised."""
    if share is None:
        masked(dy, mask, out=dx)
    else:
        dx += masked(dy, mask, out=share)


class AvgPool2d(Pool2d):
    """The mean of each window, with the zeros of the border."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        x = self.padded(x, 0.0)
        H, W, N, C = x.shape
        OH, OW = self.output
        positions = self.places(0, OH)
        share = x.dtype.type(1 / self.kernel_size**2)
        y = empty((OH, OW, N, C), x.dtype)
        y[...] = x[positions[0]]  # (OH, OW, N, C)
        for position in positions[1:]:
            y += x[position]
        y *= share

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx = empty((H, W, N, C), dy.dtype)
            dx[...] = 0
            dy *= share
            for position in positions:
                dx[position] += dy
            return self.without_border(dx)

        return y, backward


class GlobalAvgPool(Layer):
    """The mean of each channel over all pixels, (H, W, N, C) to (N, C): Lin, Chen and Yan, "Network in network" (2014),
    section 3.2."""

    def build(self, shape: Shape) -> Shape:
        self.pixels, (_, _, C) = shape[0] * shape[1], shape
        return (C,)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        H, W, N, C = x.shape
        y = empty((N, C), x.dtype)
        np.sum(x.reshape(H * W, N * C), axis=0, out=y.reshape(N * C))  # (H W, N C) -> (N C,)
        y *= x.dtype.type(1 / self.pixels)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx = empty((H, W, N, C), dy.dtype)
            dx[...] = dy * dy.dtype.type(1 / self.pixels)  # (N, C) -> (H, W, N, C)
            return dx

        return y, backward
