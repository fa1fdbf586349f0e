"""Pooling: one value for each window of a channel. Shapes: see layer.py."""

from collections.abc import Callable, Mapping, Sequence
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty, masked
from dpcnn.base.rng import SampleRng
from dpcnn.nn.convolution import bands, output_length, strided
from dpcnn.nn.layer import MOST_KERNEL_SIZE, Backward, Layer, Memory, at_least, at_most

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

    def padded_size(self, shape: Shape) -> int:
        """The elements of an image with its border; 0: it has none."""
        H, W, C = shape
        return (H + 2 * self.padding) * (W + 2 * self.padding) * C if self.padding else 0

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
    """The largest value of each window; its gradient goes to the first position that holds it, row by row.

    Where windows overlap, each takes the largest value of each of its rows, and then the largest of these values: 2 k
    positions instead of k^2.
    """

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        """Masks of bytes for each place in a window; if windows overlap, for each row and each row of a window."""
        size, k, rows = self.padded_size(shape), self.kernel_size, 0
        masks = (k**2 - 1) * prod(output)
        if self.stride < k:
            rows = ((output[0] - 1) * self.stride + k) * prod(output[1:])
            masks = (k - 1) * (rows + prod(output))
        return Memory(masks / 4, forward=size + rows, backward=size + rows)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        x = self.padded(x, -np.inf)
        y, backward = self.overlapping(x) if self.stride < self.kernel_size else self.separate(x)
        return y, lambda dy, grads: self.without_border(backward(dy))

    def separate(self, x: Array) -> tuple[Array, Callable[[Array], Array]]:
        """The largest values of windows without common pixels, and the gradient of ``x`` from that of these values."""
        H, W, N, C = x.shape
        OH, OW = self.output
        y, windows = empty((OH, OW, N, C), x.dtype), self.kernel_size**2
        larger = empty((OH, windows - 1, OW, N, C), np.dtype(bool))
        sides = bands(OH, y[0].nbytes, CACHED)
        for start, stop in sides:
            largest(x, self.places(start, stop), larger[start:stop], y[start:stop])

        def backward(dy: Array) -> Array:
            dx = empty((H, W, N, C), dy.dtype)
            if self.stride > self.kernel_size or (OH * self.stride, OW * self.stride) != (H, W):
                dx[...] = 0
            for start, stop in sides:
                spread(dy[start:stop], self.places(start, stop), larger[start:stop], dx, fresh=windows)
            return dx

        return y, backward

    def overlapping(self, x: Array) -> tuple[Array, Callable[[Array], Array]]:
        """The same for windows with common pixels, by way of the largest values ``h`` (rows, OW, N, C) of their rows.

        The first ``stride`` positions of all windows are different pixels, without a gap between them: their gradient
        is written, and that of the other positions added.
        """
        H, W, N, C = x.shape
        (OH, OW), k, s = self.output, self.kernel_size, self.stride
        rows = (OH - 1) * s + k
        y, h = empty((OH, OW, N, C), x.dtype), empty((rows, OW, N, C), x.dtype)
        larger_x, larger_h = (empty((n, k - 1, OW, N, C), np.dtype(bool)) for n in (rows, OH))
        across = [(slice(None), strided(j, OW, s)) for j in range(k)]
        parts = []
        for start, stop in bands(OH, y[0].nbytes, CACHED // 2):
            down = [(strided(start * s + i, stop - start, s),) for i in range(k)]
            own = slice(start * s + k - s if start else 0, (stop - 1) * s + k)  # the rows of no window before
            parts.append((slice(start, stop), down, own))
        for windows, down, own in parts:
            largest(x[own], across, larger_x[own], h[own])
            largest(h, down, larger_h[windows], y[windows])

        def backward(dy: Array) -> Array:
            dx, dh = empty((H, W, N, C), dy.dtype), empty((rows, OW, N, C), dy.dtype)
            dh[OH * s :] = 0
            dx[rows:] = 0
            dx[:rows, OW * s :] = 0
            for windows, down, own in reversed(parts):  # then all windows of a part's own rows have given their share
                spread(dy[windows], down, larger_h[windows], dh, fresh=s)
                spread(dh[own], across, larger_x[own], dx[own], fresh=s)
            return dx

        return y, backward


Places = Sequence[tuple[slice, ...]]
"""For each position in a window, the pixels at this position in some windows."""


def largest(x: Array, places: Places, larger: Array, out: Array) -> None:
    """Fill ``out`` with the largest value of each window, and ``larger`` (rows, places - 1, ..), for each place but the
    first, with whether its value is larger than at all places before."""
    first, *others = places
    so_far = x[first]
    for number, place in enumerate(others):
        np.greater(x[place], so_far, out=larger[:, number])
        so_far = np.maximum(so_far, x[place], out=out)
    if not others:
        np.copyto(out, so_far)  # a later layer may write over the output, but not over the input


def spread(dy: Array, places: Places, larger: Array, dx: Array, fresh: int) -> None:
    """Write ``dy`` at the place of each window's largest value, and 0 at the others, of the first ``fresh`` places; add
    it at the places after them. Overwrites ``larger``."""
    free = empty(dy.shape, np.dtype(bool))
    free[...] = True
    masks = [free]
    for number in reversed(range(len(places) - 1)):
        mask = larger[:, number]
        mask &= free  # of the places that are larger than all before, the last one
        free ^= mask
        masks.insert(1, mask)
    for place, mask in zip(places[:fresh], masks[:fresh], strict=True):
        masked(dy, mask, out=dx[place])
    for place, mask in zip(places[fresh:], masks[fresh:], strict=True):
        dx[place] += masked(dy, mask, out=empty(dy.shape, dy.dtype))


class AvgPool2d(Pool2d):
    """The mean of each window, with the zeros of the border."""

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        size = self.padded_size(shape)
        return Memory(forward=size, backward=size)

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

    keeps_input = False

    def build(self, shape: Shape) -> Shape:
        H, W, C = shape
        self.pixels = H * W
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
