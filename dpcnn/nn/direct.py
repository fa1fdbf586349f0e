"""Convolutions of any shape over many channels, position by position of the kernel. Shapes: see layer.py."""

from collections.abc import Iterator
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import BAND, bands, flat, gathered, inside
from dpcnn.nn.layer import Memory

Place = tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]


class Direct:
    """A matrix product for each position of the kernel, of the pixels under it: Vasudevan, Anderson and Gregg,
    "Parallel multi channel convolution using general matrix multiplication" (2017), "kn2row".

    Nothing is multiplied by the zeros of the padding, and the weights are used as they are. The products are added up
    in memory, which takes little time if there are many channels.

    In the comments, R is the number of outputs, of all images, for which a position lies within the image.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int = 1) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def memory(self, shape: Shape, output: Shape) -> Memory:
        size = min(BAND // 4, prod(output[:2]) * max(output[-1], shape[-1]))  # of some rows of the output
        return Memory(forward=2 * size, backward=3 * size, keeps_input=True)

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        y[...] = 0
        for rows in self._bands(x.shape, y.shape):
            for position, outputs, inputs in self._places(x.shape, y.shape, rows):
                # (R, C) x (C, F) -> (R, F)
                y[outputs] += product(gathered(x[inputs]), w[position])
        return x

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        parts = self._bands(saved.shape, dy.shape)
        dw[...] = 0
        if dx is not None:
            dx[...] = 0
        for rows in parts:
            for position, outputs, inputs in self._places(saved.shape, dy.shape, rows):
                x, d = gathered(saved[inputs]), gathered(dy[outputs])
                share = empty(w.shape[2:], w.dtype) if len(parts) > 1 else dw[position]
                np.matmul(flat(x).T, flat(d), out=share)  # (C, R) x (R, F) -> (C, F)
                if len(parts) > 1:
                    dw[position] += share
                if dx is not None:
                    dx[inputs] += product(d, w[position].T)  # (R, F) x (F, C) -> (R, C)

    def _bands(self, image: Shape, output: Shape) -> list[tuple[int, int]]:
        """The rows of the output that are computed at a time."""
        OH, OW, N, F = output
        return bands(OH, 4 * OW * N * max(F, image[-1]))

    def _places(self, image: Shape, output: Shape, band: tuple[int, int]) -> Iterator[Place]:
        """Positions of the kernel, with the outputs in some rows and the pixels of the image that they lie on."""
        (start, stop), s, p, d = band, self.stride, self.padding, self.dilation
        for i, j in np.ndindex(self.kernel_size):
            rows, from_rows = inside(start * s + i * d - p, stop - start, image[0], s)
            columns, from_columns = inside(j * d - p, output[1], image[1], s)
            if rows.start < rows.stop and columns.start < columns.stop:
                yield (i, j), (slice(start + rows.start, start + rows.stop), columns), (from_rows, from_columns)


def product(pixels: Array, weights: Array) -> Array:
    """(h, v, N, C) x (C, F) -> (h, v, N, F)."""
    result = empty((*pixels.shape[:-1], weights.shape[1]), pixels.dtype)
    np.matmul(flat(pixels), weights, out=flat(result))
    return result
