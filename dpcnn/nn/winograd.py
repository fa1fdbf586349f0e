"""Winograd's kernel for square convolutions with stride 1. Shapes: see layer.py."""

from functools import cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import bands, first, output_length, pixels
from dpcnn.nn.layer import Memory
from dpcnn.nn.tuning import TUNING

POINTS = {
    4: (0, 1, -1),
    5: (0.5, -0.5, 1.25, -1.25),
    6: (0, 0.625, -0.625, 1.25, -1.25),
    7: (0.25, -0.25, 0.75, -0.75, 2, -2),
    8: (0, 0.5, -0.5, 1, -1, 2, -2),
    9: (0.25, -0.25, 0.625, -0.625, 1, -1, 2.5, -2.5),
    10: (0, 0.375, -0.375, 0.875, -0.875, 1.25, -1.25, 2.375, -2.375),
}
"""The points at which Winograd's polynomials are evaluated, for each side a of its input tiles.

A search over nearly symmetric sets of small multiples of 1/8 found these sets: they have the smallest rounding
errors for r = 3. The errors grow with a; the tests compare each with its bound.
"""

MOST_SIDE = 7
"""The largest side of a kernel: its tiles have up to 4 by 4 outputs."""

MOST_OUTPUTS = 8
"""The largest side m of a tile of outputs."""

FEWEST_ROWS = 32
"""The fewest rows of a product over the channels, if the image has enough tiles."""

AT_ONCE = 1 << 13
"""The most weights at a position of the kernel that are transformed at once: so they stay in the processor's cache."""


class Winograd:
    """F(m x m, r x r) of Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016).

    With kernels g of r by r, tiles y of m by m outputs, and tiles d of a by a inputs, a = m + r - 1, m apart::

        y = A^T [(G g G^T) * (B^T d B)] A

    where * is a matrix product over the channels, one for each of the a^2 positions in a tile. Per output, this takes
    1.56 multiplications instead of 9 for r = 3 and m = 8, and 2.78 instead of 25 for r = 5 and m = 6. The gradients are
    the adjoint of this formula, and use the same transformed inputs.

    A^T, B^T and G are applied as matrix products too, first over the rows of a tile, then over its
    columns: at every pixel a batch has a long run of numbers, and the product of a small matrix with such
    runs takes little more than one pass over memory. A tile that extends beyond the border has matrices of
    its own, without multiplications by zeros and without unused results.

    In the comments, a tile covers h by v pixels of the image and gives p by q outputs; T tiles are
    multiplied at once; N C is one axis of N * C numbers.
    """

    def __init__(self, shape: Shape, padding: int, r: int = 3, kernel_tiles: float = 0) -> None:
        """For inputs of ``shape`` (H, W, C) and kernels of ``r`` by ``r``, from 2 to :data:`MOST_SIDE`.

        Args:
            kernel_tiles: the number of tiles whose products take as long as the transforms of the kernel.
        """
        H, W, _ = shape
        OH, OW = output_length(H, r, 1, padding), output_length(W, r, 1, padding)
        self.width, self.r = W, r
        sides = [a for a in POINTS if 2 <= a - r + 1 <= MOST_OUTPUTS]
        counts = {a: -(-OH // (a - r + 1)) * -(-OW // (a - r + 1)) for a in sides}
        self.a = min(sides, key=lambda a: (counts[a] + kernel_tiles) * a**2)
        self.m, self.positions = self.a - r + 1, self.a**2
        self.products = counts[self.a] * self.positions
        self.down, self.across = tiles(H, OH, self.m, r, padding), tiles(W, OW, self.m, r, padding)

    def memory(self, shape: Shape, output: Shape) -> Memory:
        C, F, a, OW = shape[-1], output[-1], self.a, output[1]
        at_once, rows = min(TUNING.winograd_tiles, len(self.across)), a * self.width * C
        return Memory(
            self.products * C,
            forward=rows + (a + self.m) * a * at_once * F,
            backward=rows + a * OW * F + a * a * at_once * (C + F),
            weights=(3 * a**2 + self.r**2) * C * F,
        )

    def forward(self, x: Array, w: Array, y: Array) -> list[Array]:
        (_, W, N, C), F, a, dtype = x.shape, w.shape[-1], self.a, x.dtype
        (AT, BT, _), kernels, groups = cook_toom(self.m, self.r, dtype), self._transform_kernels(w), self._groups(N)
        saved = self._memory(groups, N * C, dtype)
        x, y = pixels(x), pixels(y)  # (H, W, N C), (OH, OW, N F)
        rows, most = empty((a, W, N * C), dtype), len(groups[0])
        for_products, for_half = empty((a * a * most * N * F,), dtype), empty((self.m * a * most * N * F,), dtype)
        transformed = iter(saved)
        for top in self.down:
            # (a, h) x (W, h, N C) -> (W, a, N C)
            np.matmul(BT[:, top.within], x[top.inputs].swapaxes(0, 1), out=rows.swapaxes(0, 1))
            for group in groups:
                T = len(group)
                inputs = next(transformed)  # (a, a, T, N C)
                products, half = first(for_products, (a, a, T * N * F)), first(for_half, (top.height, a, T, N * F))
                for j, left in enumerate(group):
                    # (a, v) x (a, v, N C) -> (a, a, N C)
                    np.matmul(BT[:, left.within], rows[:, left.inputs], out=inputs[:, :, j])
                # (a a, T N, C) x (a a, C, F) -> (a a, T N, F)
                multiply(inputs.reshape(a * a, T * N, C), kernels, products.reshape(a * a, T * N, F))
                # (p, a) x (a, a, T N F) -> (a, p, T N F)
                np.matmul(AT[: top.height], products.swapaxes(0, 1), out=pixels(half).swapaxes(0, 1))
                for j, left in enumerate(group):
                    # (q, a) x (p, a, N F) -> (p, q, N F)
                    np.matmul(AT[: left.height], half[:, :, j], out=y[top.outputs, left.outputs])
        return saved

    def backward(self, saved: list[Array], dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (_, OW, N, F), W, C, a, dtype = dy.shape, self.width, w.shape[2], self.a, dy.dtype
        (AT, BT, _), groups = cook_toom(self.m, self.r, dtype), self._groups(N)
        B, most = BT.T, len(groups[0])
        kernels = self._transform_kernels(w.swapaxes(2, 3).copy())  # (a a, F, C); BLAS is slower if it transposes
        dkernels, share = empty((a * a, C, F), w.dtype), empty((a * a, C, F), w.dtype)
        dy = pixels(dy)  # (OH, OW, N F)
        half, rows, transformed = empty((a, OW, N * F), dtype), empty((a, W, N * C), dtype), iter(saved)
        for_dproducts, for_dinputs = empty((a * a * most * N * F,), dtype), empty((a * a * most * N * C,), dtype)
        for i, top in enumerate(self.down):
            # (a, p) x (OW, p, N F) -> (OW, a, N F)
            np.matmul(AT[: top.height].T, dy[top.outputs].swapaxes(0, 1), out=half.swapaxes(0, 1))
            for k, group in enumerate(groups):
                T = len(group)
                dproducts = first(for_dproducts, (a, a, T, N * F))
                for j, left in enumerate(group):
                    # (a, q) x (a, q, N F) -> (a, a, N F)
                    np.matmul(AT[: left.height].T, half[:, left.outputs], out=dproducts[:, :, j])
                inputs = next(transformed).reshape(a * a, T * N, C).swapaxes(1, 2)  # (a a, C, T N)
                # (a a, C, T N) x (a a, T N, F) -> (a a, C, F)
                multiply(inputs, dproducts.reshape(a * a, T * N, F), share if i or k else dkernels)
                if i or k:
                    dkernels += share
                if dx is not None:
                    dinputs = first(for_dinputs, (a, a, T, N * C))
                    # (a a, T N, F) x (a a, F, C) -> (a a, T N, C)
                    multiply(dproducts.reshape(a * a, T * N, F), kernels, dinputs.reshape(a * a, T * N, C))
                    for j, left in enumerate(group):
                        add_tile(B, left, dinputs[:, :, j], rows)  # (a, a, N C) into (a, W, N C)
            if dx is not None:
                add_tile(B, top, rows.swapaxes(0, 1), pixels(dx).swapaxes(0, 1))  # (W, a, N C) into (W, H, N C)
        self._transform_back(dkernels, dw)

    def _groups(self, images: int) -> list[list["Tile"]]:
        """The tiles of a row of tiles, divided into those that are multiplied at once."""
        count = max(TUNING.winograd_tiles, FEWEST_ROWS // images)
        return [self.across[first : first + count] for first in range(0, len(self.across), count)]

    def _memory(self, groups: list[list["Tile"]], length: int, dtype: Any) -> list[Array]:
        """Memory for the transformed inputs of each group of tiles: (a, a, T, length)."""
        counts, size = [len(group) for _ in self.down for group in groups], self.a**2 * length
        memory = empty((sum(counts), size), dtype)
        return [
            memory[start:end].reshape(self.a, self.a, end - start, length)
            for start, end in pairwise(accumulate(counts, initial=0))
        ]

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T of ``w`` (r, r, C, F): (a a, C, F)."""
        G, (r, _, C, F), a = cook_toom(self.m, self.r, w.dtype)[2], w.shape, self.a
        kernels = empty((a, a, C * F), w.dtype)
        on_both_sides(G, w.reshape(r, r, C * F), kernels)
        return kernels.reshape(a * a, C, F)

    def _transform_back(self, dkernels: Array, dw: Array) -> None:
        """G^T (a, a) G for the gradients of transformed kernels (a a, C, F): fills ``dw`` (r, r, C, F)."""
        G, (r, _, C, F), a = cook_toom(self.m, self.r, dw.dtype)[2], dw.shape, self.a
        on_both_sides(G.T, dkernels.reshape(a, a, C * F), dw.reshape(r, r, C * F))


class Tile(NamedTuple):
    """The position of a tile along one side of the image.

    Attributes:
        inputs: the pixels of the image that it covers.
        within: the positions of these pixels in the tile, among a; the other positions lie outside the image.
        overlap: the number of its first pixels that the tile before it covers too.
        outputs: the pixels of the output that it gives.
        height: the number of these outputs; m, except for the last tile.
    """

    inputs: slice
    within: slice
    overlap: int
    outputs: slice
    height: int


def multiply(a: Array, b: Array, out: Array) -> None:
    """Fill ``out`` (P, rows, columns) with P products, in two halves where BLAS needs no copies for a half."""
    columns = out.shape[-1]
    halves = TUNING.copied <= a.shape[1] * a.shape[2] * columns < 2 * TUNING.copied
    for start, stop in bands(columns, 1, -(-columns // 2) if halves else columns):
        np.matmul(a, b[..., start:stop], out=out[..., start:stop])


def on_both_sides(M: Array, kernels: Array, out: Array) -> None:
    """Fill ``out`` (n, n, L) with M g M^T, for a matrix M (n, k) and L matrices g, ``kernels`` (k, k, L)."""
    n, k = M.shape
    for start, stop in bands(kernels.shape[2], 1, AT_ONCE):
        half = empty((n, k, stop - start), kernels.dtype)
        # (n, k) x (k, k, L) -> (k, n, L); then (n, k) x (n, k, L) -> (n, n, L)
        np.matmul(M, kernels[:, :, start:stop].swapaxes(0, 1), out=half.swapaxes(0, 1))
        np.matmul(M, half, out=out[:, :, start:stop])


def add_tile(B: Array, tile: Tile, values: Array, out: Array) -> None:
    """Write B (a, a) times the values (.., a, L) of a tile into ``out`` (.., H, L), and add where earlier tiles lie."""
    B, old = B[tile.within], tile.overlap  # (h, a)
    target = out[..., tile.inputs, :]  # (.., h, L)
    np.matmul(B[old:], values, out=target[..., old:, :])  # (h - old, a) x (.., a, L) -> (.., h - old, L)
    if old:
        share = empty((*target.shape[:-2], old, target.shape[-1]), out.dtype)
        np.matmul(B[:old], values, out=share)  # (old, a) x (.., a, L) -> (.., old, L)
        target[..., :old, :] += share


def tiles(length: int, outputs: int, m: int, r: int, padding: int) -> list[Tile]:
    """The tiles of F(m, r) along a side of ``length`` pixels."""
    side, end = [], 0
    for top in range(0, outputs, m):
        start, last = top - padding, min(top + m, outputs)
        lo, hi = (min(max(pixel, 0), length) for pixel in (start, start + m + r - 1))
        inside = slice(lo - start, hi - start)
        side.append(Tile(slice(lo, hi), inside, min(max(end - lo, 0), hi - lo), slice(top, last), last - top))
        end = hi
    return side


@cache
def cook_toom(m: int, r: int, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
    """A^T (m, a), B^T (a, a) and G (a, r) of F(m, r), a = m + r - 1, by the method of Cook and Toom.

    It multiplies polynomials by their values at a - 1 points and at infinity: see Blahut, "Fast
    algorithms for signal processing" (2010), chapter 5.
    """
    a = m + r - 1
    points = np.array(POINTS[a], float)
    AT, BT, G = np.zeros((m, a)), np.zeros((a, a)), np.zeros((a, r))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        AT[:, row] = point ** np.arange(m)
        BT[row, :-1] = np.poly(others)[::-1]
        G[row] = point ** np.arange(r) / np.prod(point - others)
    AT[-1, -1] = G[-1, -1] = 1
    BT[-1] = np.poly(points)[::-1]
    return AT.astype(dtype), BT.astype(dtype), G.astype(dtype)
