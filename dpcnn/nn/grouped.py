"""Convolutions of single pixels, of single channels and of groups of channels. Shapes: see layer.py."""

from collections.abc import Sequence

import numpy as np

from dpcnn.base.arrays import Array, Workspace
from dpcnn.nn.convolution import Kernel, bands, flat, padded, strided


class Pointwise:
    """A convolution with a kernel of 1x1 and no padding: one product of matrices."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.workspace = Workspace()

    def forward(self, x: Array, w: Array, y: Array) -> None:
        self.x = x
        if self.stride > 1:
            self.x = self.workspace.array("x", (*y.shape[:3], x.shape[-1]), x.dtype)
            np.copyto(self.x, x[:: self.stride, :: self.stride])
        np.matmul(flat(self.x), w[0, 0], out=flat(y))

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        np.matmul(flat(self.x).T, flat(dy), out=dw[0, 0])
        if dx is None:
            return
        if self.stride == 1:
            np.matmul(flat(dy), w[0, 0].T, out=flat(dx))
            return
        taken = self.workspace.array("dx", self.x.shape, dx.dtype)
        np.matmul(flat(dy), w[0, 0].T, out=flat(taken))
        dx[...] = 0
        dx[:: self.stride, :: self.stride] = taken


class Depthwise:
    """A kernel of its own for each channel, ``w`` (KH, KW, 1, C): Chollet, "Xception" (2017), section 2.

    At each position of the kernel, the pixels of a band of output rows are multiplied by one weight per channel.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.workspace = Workspace()

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (H, W, N, _), p = x.shape, self.padding
        self.image = padded(self.workspace, x, p, (H + 2 * p, W + 2 * p))
        weights = self._repeated(w, N)
        for rows in self._bands(y):
            product = self.workspace.array("product", y[rows].shape, y.dtype)
            for number, position in enumerate(self._positions(rows, y.shape[1])):
                if number == 0:
                    np.multiply(self.image[position], weights[0], out=y[rows])
                else:
                    y[rows] += np.multiply(self.image[position], weights[number], out=product)

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        N, C, p = *dy.shape[2:], self.padding
        weights, sums = self._repeated(w, N), self.workspace.array("sums", (w[..., 0, 0].size, N * C), w.dtype)
        spread = None if dx is None else self.workspace.array("spread", self.image.shape, dy.dtype)
        sums[...] = 0
        if spread is not None:
            spread[...] = 0
        for rows in self._bands(dy):
            product = self.workspace.array("product", dy[rows].shape, dy.dtype)
            for number, position in enumerate(self._positions(rows, dy.shape[1])):
                np.multiply(self.image[position], dy[rows], out=product)
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
        repeated = self.workspace.array("weights", (w[..., 0, 0].size, N, w.shape[-1]), w.dtype)
        repeated[...] = w.reshape(-1, 1, w.shape[-1])
        return repeated


class Grouped:
    """Groups of channels, each with filters of its own: Krizhevsky, Sutskever and Hinton, "ImageNet classification with
    deep convolutional neural networks" (2012), section 3.5. ``w`` is (KH, KW, C / groups, F)."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self.kernels = kernels
        self.workspace = Workspace()

    def forward(self, x: Array, w: Array, y: Array) -> None:
        for number, kernel in enumerate(self.kernels):
            part = self._copy(f"y{number}", y, number)
            kernel.forward(self._copy(f"x{number}", x, number), self._copy(f"w{number}", w, number), part)
            self._channels(y, number)[...] = part

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        for number, kernel in enumerate(self.kernels):
            part_dw = self._copy("dw", dw, number)
            part_dx = None if dx is None else self._copy("dx", dx, number)
            kernel.backward(self._copy("dy", dy, number), self._copy(f"w{number}", w, number), part_dw, part_dx)
            self._channels(dw, number)[...] = part_dw
            if dx is not None and part_dx is not None:
                self._channels(dx, number)[...] = part_dx

    def _channels(self, array: Array, number: int) -> Array:
        """The channels, or filters, of a group: the last axis."""
        width = array.shape[-1] // len(self.kernels)
        return array[..., number * width : (number + 1) * width]

    def _copy(self, key: str, array: Array, number: int) -> Array:
        """A contiguous copy of a group's channels."""
        group = self._channels(array, number)
        copy = self.workspace.array(key, group.shape, array.dtype)
        np.copyto(copy, group)
        return copy
