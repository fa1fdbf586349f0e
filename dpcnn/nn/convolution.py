"""The interface of convolution kernels, and Winograd's kernel for 3x3 with stride 1. Shapes: see layer.py.

A kernel works on a part of the output at a time, some rows or a tile, so that its intermediate results stay in the
processor's cache.
"""

from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.tuning import TUNING

BAND = 1 << 21
"""The largest size in bytes of the intermediate results of a band, which is one or more rows of the output."""

POINTS = {
    2: (0, 1, -1),
    3: (0.5, -0.5, 1.25, -1.25),
    4: (0, 0.625, -0.625, 1.25, -1.25),
    5: (0.25, -0.25, 0.75, -0.75, 2, -2),
    6: (0, 0.5, -0.5, 1, -1, 2, -2),
    7: (0.25, -0.25, 0.625, -0.625, 1, -1, 2.5, -2.5),
}
"""The points at which Winograd's polynomials are evaluated, for each length m of its output tiles.

A search over nearly symmetric sets of small multiples of 1/8 found these sets: they have the smallest rounding
errors. The errors grow with m; the tests compare each with its bound.
"""


class Kernel(Protocol):
    """One way to compute a convolution and its gradients."""

    def forward(self, x: Array, w: Array, y: Array) -> Any:
        """Fill ``y`` (OH, OW, N, F) from ``x`` (H, W, N, C) and ``w`` (KH, KW, C, F).

        Returns:
            What ``backward`` needs of ``x``.
        """

    def backward(self, saved: Any, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        """Fill ``dw`` and, unless it is None, ``dx`` from ``dy`` and what ``forward`` has returned; all contiguous."""


class Winograd:
    """F(m x m, 3x3) of Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016).

    With tiles d of m+2 by m+2 inputs, m apart, kernels g of 3x3, and tiles y of m by m outputs::

        y = A^T [(G g G^T) * (B^T d B)] A

    where * is a matrix product over the channels, one for each of the (m+2)^2 positions in a tile: for
    m = 7 this takes 1.65 multiplications per output instead of 9. The gradients are the adjoint of this
    formula, and use the same transformed inputs.

    A^T, B^T and G are applied as matrix products too, first over the rows of a tile, then over its
    columns: at every pixel a batch has a long run of numbers, and the product of a small matrix with such
    runs takes little more than one pass over memory. A tile that extends beyond the border has matrices of
    its own, without multiplications by zeros and without unused results.

    In the comments, a = m+2; a tile covers h by v pixels of the image and gives p by q outputs; T tiles are
    multiplied at once; N C is one axis of N * C numbers.
    """

    def __init__(self, shape: Shape, padding: int) -> None:
        H, W, _ = shape
        OH, OW = output_length(H, 3, 1, padding), output_length(W, 3, 1, padding)
        self.width = W
        self.m = min(POINTS, key=lambda m: -(-OH // m) * -(-OW // m) * (m + 2) ** 2)  # fewest multiplications
        self.down, across = tiles(H, OH, self.m, padding), tiles(W, OW, self.m, padding)
        at_once = TUNING.winograd_tiles
        self.across = [across[first : first + at_once] for first in range(0, len(across), at_once)]

    def forward(self, x: Array, w: Array, y: Array) -> list[Array]:
        (_, W, N, C), F, a, dtype = x.shape, w.shape[-1], self.m + 2, x.dtype
        (AT, BT, _), kernels, saved = cook_toom(self.m, dtype), self._transform_kernels(w), self._memory(N * C, dtype)
        x, y = pixels(x), pixels(y)  # (H, W, N C), (OH, OW, N F)
        rows, most = empty((a, W, N * C), dtype), len(self.across[0])
        for_products, for_half = empty((a * a * most * N * F,), dtype), empty((self.m * a * most * N * F,), dtype)
        transformed = iter(saved)
        for top in self.down:
            # (a, h) x (W, h, N C) -> (W, a, N C)
            np.matmul(BT[:, top.within], x[top.inputs].swapaxes(0, 1), out=rows.swapaxes(0, 1))
            for group in self.across:
                T = len(group)
                inputs = next(transformed)  # (a, a, T, N C)
                products, half = first(for_products, (a, a, T * N * F)), first(for_half, (top.height, a, T, N * F))
                for j, left in enumerate(group):
                    # (a, v) x (a, v, N C) -> (a, a, N C)
                    np.matmul(BT[:, left.within], rows[:, left.inputs], out=inputs[:, :, j])
                # (a a, T N, C) x (a a, C, F) -> (a a, T N, F)
                np.matmul(inputs.reshape(a * a, T * N, C), kernels, out=products.reshape(a * a, T * N, F))
                # (p, a) x (a, a, T N F) -> (a, p, T N F)
                np.matmul(AT[: top.height], products.swapaxes(0, 1), out=pixels(half).swapaxes(0, 1))
                for j, left in enumerate(group):
                    # (q, a) x (p, a, N F) -> (p, q, N F)
                    np.matmul(AT[: left.height], half[:, :, j], out=y[top.outputs, left.outputs])
        return saved

    def backward(self, saved: list[Array], dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (_, OW, N, F), W, C, a, dtype = dy.shape, self.width, w.shape[2], self.m + 2, dy.dtype
        (AT, _, G), most = cook_toom(self.m, dtype), len(self.across[0])
        kernels = self._transform_kernels(w.swapaxes(2, 3).copy())  # (a a, F, C); BLAS is slower if it transposes
        dkernels, share = empty((a * a, C, F), w.dtype), empty((a * a, C, F), w.dtype)
        dy = pixels(dy)  # (OH, OW, N F)
        half, rows, transformed = empty((a, OW, N * F), dtype), empty((a, W, N * C), dtype), iter(saved)
        for_dproducts, for_dinputs = empty((a * a * most * N * F,), dtype), empty((a * a * most * N * C,), dtype)
        for i, top in enumerate(self.down):
            # (a, p) x (OW, p, N F) -> (OW, a, N F)
            np.matmul(AT[: top.height].T, dy[top.outputs].swapaxes(0, 1), out=half.swapaxes(0, 1))
            for k, group in enumerate(self.across):
                T = len(group)
                dproducts = first(for_dproducts, (a, a, T, N * F))
                for j, left in enumerate(group):
                    # (a, q) x (a, q, N F) -> (a, a, N F)
                    np.matmul(AT[: left.height].T, half[:, left.outputs], out=dproducts[:, :, j])
                inputs = next(transformed).reshape(a * a, T * N, C).swapaxes(1, 2)  # (a a, C, T N)
                # (a a, C, T N) x (a a, T N, F) -> (a a, C, F)
                np.matmul(inputs, dproducts.reshape(a * a, T * N, F), out=share if i or k else dkernels)
                if i or k:
                    dkernels += share
                if dx is not None:
                    dinputs = first(for_dinputs, (a, a, T, N * C))
                    # (a a, T N, F) x (a a, F, C) -> (a a, T N, C)
                    np.matmul(dproducts.reshape(a * a, T * N, F), kernels, out=dinputs.reshape(a * a, T * N, C))
                    for j, left in enumerate(group):
                        self._add_tile(left, dinputs[:, :, j], rows)  # (a, a, N C) into (a, W, N C)
            if dx is not None:
                self._add_tile(top, rows.swapaxes(0, 1), pixels(dx).swapaxes(0, 1))  # (W, a, N C) into (W, H, N C)
        # (3, a) x (a, a C F) -> (3, a C F); then (3, a) x (3, a, C F) -> (3, 3, C F)
        np.matmul(G.T, np.matmul(G.T, dkernels.reshape(a, -1)).reshape(3, a, -1), out=dw.reshape(3, 3, -1))

    def _memory(self, length: int, dtype: Any) -> list[Array]:
        """Memory for the transformed inputs of each group of tiles: (a, a, T, length)."""
        counts, size = [len(group) for _ in self.down for group in self.across], (self.m + 2) ** 2 * length
        memory = empty((sum(counts), size), dtype)
        return [
            memory[start:end].reshape(self.m + 2, self.m + 2, end - start, length)
            for start, end in pairwise(accumulate(counts, initial=0))
        ]

    def _add_tile(self, tile: "Tile", values: Array, out: Array) -> None:
        """Write B times the values (.., a, L) of a tile into ``out`` (.., H, L), and add where earlier tiles lie."""
        B, old = cook_toom(self.m, out.dtype)[1][:, tile.within].T, tile.overlap  # (h, a)
        target = out[..., tile.inputs, :]  # (.., h, L)
        np.matmul(B[old:], values, out=target[..., old:, :])  # (h - old, a) x (.., a, L) -> (.., h - old, L)
        if old:
            share = empty((*target.shape[:-2], old, target.shape[-1]), out.dtype)
            np.matmul(B[:old], values, out=share)  # (old, a) x (.., a, L) -> (.., old, L)
            target[..., :old, :] += share

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T of ``w`` (3, 3, C, F): (a a, C, F)."""
        (_, _, G), (_, _, C, F), a = cook_toom(self.m, w.dtype), w.shape, self.m + 2
        half = np.matmul(G, w.reshape(3, -1)).reshape(a, 3, -1)  # (a, 3) x (3, 3 C F) -> (a, 3, C F)
        # (a, 3) x (a, 3, C F) -> (a, a, C F), as (a a, C, F)
        return np.matmul(G, half, out=empty((a, a, C * F), w.dtype)).reshape(a * a, C, F)


@dataclass(frozen=True)
class Tile:
    """The position of a tile along one side of the image.

    Attributes:
        inputs: the pixels of the image that it covers.
        within: the positions of these pixels in the tile, among m + 2; the other positions lie outside the image.
        overlap: the number of its first pixels that the tile before it covers too.
        outputs: the pixels of the output that it gives.
        height: the number of these outputs; m, except for the last tile.
    """

    inputs: slice
    within: slice
    overlap: int
    outputs: slice
    height: int


def tiles(length: int, outputs: int, m: int, padding: int) -> list[Tile]:
    """The tiles along a side of ``length`` pixels."""
    side, end = [], 0
    for first in range(0, outputs, m):
        start, last = first - padding, min(first + m, outputs)
        lo, hi = (min(max(pixel, 0), length) for pixel in (start, start + m + 2))
        inside = slice(lo - start, hi - start)
        side.append(Tile(slice(lo, hi), inside, min(max(end - lo, 0), hi - lo), slice(first, last), last - first))
        end = hi
    return side


@cache
def cook_toom(m: int, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """A^T (m, m+2), B^T (m+2, m+2) and G (m+2, 3) of F(m, 3) by the method of Cook and Toom.

    It multiplies polynomials by their values at m + 1 points and at infinity: see Blahut, "Fast
    algorithms for signal processing" (2010), chapter 5.
    """
    points = np.array(POINTS[m], float)
    AT, BT, G = np.zeros((m, m + 2)), np.zeros((m + 2, m + 2)), np.zeros((m + 2, 3))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        AT[:, row] = point ** np.arange(m)
        BT[row, :-1] = np.poly(others)[::-1]
        G[row] = point ** np.arange(3) / np.prod(point - others)
    AT[-1, -1] = G[-1, -1] = 1
    BT[-1] = np.poly(points)[::-1]
    return AT.astype(dtype), BT.astype(dtype), G.astype(dtype)


def padded(x: Array, padding: int, size: tuple[int, int]) -> Array:
    """Images (H, W, N, C) in an array of zeros of a larger size, ``padding`` pixels from the top and the left."""
    (H, W, N, C), p = x.shape, padding
    image = empty((*size, N, C), x.dtype)
    for border in (image[:p], image[p + H :], image[p : p + H, :p], image[p : p + H, p + W :]):
        border[...] = 0
    image[p : p + H, p : p + W] = x
    return image


def pixels(x: Array) -> Array:
    """Contiguous (H, W, ..) with all values of a pixel as one run: (H, W, L)."""
    return x.reshape(*x.shape[:2], -1)


def first(memory: Array, shape: Shape) -> Array:
    """An array in the first elements of ``memory``, which has one axis."""
    return memory[: prod(shape)].reshape(shape)


def flat(y: Array) -> Array:
    """Contiguous (..., F) as a matrix of rows F."""
    return y.reshape(-1, y.shape[-1])


def bands(rows: int, bytes_a_row: int, most: int = BAND) -> list[tuple[int, int]]:
    """Intervals of rows, (start, stop), each of at most ``most`` bytes, or of one row."""
    step = max(1, most // bytes_a_row)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def extent(kernel_size: int, dilation: int) -> int:
    """The number of pixels that a kernel spans along one side; its positions lie ``dilation`` pixels apart."""
    return dilation * (kernel_size - 1) + 1


def output_length(length: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1) -> int:
    """The number of windows that fit along one side of an image."""
    return (length + 2 * padding - extent(kernel_size, dilation)) // stride + 1


def strided(start: int, count: int, stride: int) -> slice:
    """``count`` positions from ``start`` on, ``stride`` apart."""
    return slice(start, start + stride * (count - 1) + 1, stride)
