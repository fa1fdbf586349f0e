"""Convolution kernels: im2col for any shape, Winograd's for 3x3 with stride 1. Shapes: see layers.py.

Each has the two methods of :class:`Kernel`, and works on a part of the output at a time, some rows or a
tile, so that its intermediate results stay in the processor's cache.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dpcnn.base.arrays import Array, Shape, Workspace
from dpcnn.nn.tuning import TUNING

BAND = 1 << 21
"""Bytes of the windows of a band: some rows of the output, one at least."""

POINTS = {
    2: (0, 1, -1),
    3: (0.5, -0.5, 1.25, -1.25),
    4: (0, 0.625, -0.625, 1.25, -1.25),
    5: (0.25, -0.25, 0.75, -0.75, 2, -2),
    6: (0, 0.5, -0.5, 1, -1, 2, -2),
    7: (0.25, -0.25, 0.625, -0.625, 1, -1, 2.5, -2.5),
}
"""For each length m of Winograd's output tiles, where its polynomials are evaluated.

Of the sets of small multiples of 1/8 that lie as symmetric as they can, those with the smallest rounding
errors in a search. The errors grow with m; the tests hold each to its bound.
"""


class Kernel(Protocol):
    """One way to compute a convolution and its gradients; ``backward`` refers to the last ``forward``."""

    def forward(self, x: Array, w: Array, y: Array) -> None:
        """Fill ``y`` (OH, OW, N, F) from ``x`` (H, W, N, C) and ``w`` (KH, KW, C, F)."""

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        """Fill ``dw`` and, unless it is None, ``dx`` from ``dy``; all contiguous."""


class Im2col:
    """Windows as the rows of a matrix, after Chellapilla, Puri and Simard, "High performance
    convolutional neural networks for document processing" (2006): a product for each row of the output."""

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int = 1) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.workspace = Workspace()
        self.bands: list[tuple[int, int]] = []
        self.columns: list[Array] = []  # for each band

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (H, W, _, _), (KH, KW), p, F = x.shape, self.kernel_size, self.padding, w.shape[-1]
        image = padded(self.workspace, x, p, (H + 2 * p, W + 2 * p))
        self.bands = bands(len(y), KH * KW * image[0].nbytes)
        self.columns = []
        for lo, hi in self.bands:
            self.columns.append(self._columns(image, lo, hi, y.shape[1]))
            np.matmul(self.columns[-1], w.reshape(-1, F), out=y[lo:hi].reshape(hi - lo, -1, F))

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        F = w.shape[-1]
        dw[...] = 0
        for (lo, hi), columns in zip(self.bands, self.columns, strict=True):
            shares = self.workspace.array("shares of dw", (hi - lo, w[..., 0].size, F), dy.dtype)
            np.matmul(columns.swapaxes(1, 2), dy[lo:hi].reshape(hi - lo, -1, F), out=shares)
            dw += shares.sum(axis=0).reshape(w.shape)
        if dx is not None:
            self._scatter(dy, w, dx)

    def _columns(self, image: Array, lo: int, hi: int, OW: int) -> Array:
        """The windows of some output rows: (hi - lo, OW * N, KH * KW * C)."""
        (KH, KW), (_, _, N, C), s, d = self.kernel_size, image.shape, self.stride, self.dilation
        sides = extent(KH, d), extent(KW, d)
        rows = image[lo * s : (hi - 1) * s + sides[0]]
        windows = sliding_window_view(rows, sides, axis=(0, 1))[::s, ::s, ..., ::d, ::d]  # (.., OW, N, C, KH, KW)
        n = hi - lo
        if C > 1:
            columns = self.workspace.array(f"columns {lo}", (n, OW, N, KH, KW, C), image.dtype)
            np.copyto(columns, windows.transpose(0, 1, 2, 4, 5, 3))
            return columns.reshape(n, OW * N, KH * KW * C)
        planes = self.workspace.array(f"columns {lo}", (KH, KW, n, OW, N), image.dtype)  # long runs to copy
        np.copyto(planes, windows[:, :, :, 0].transpose(3, 4, 0, 1, 2))
        return planes.reshape(KH * KW, n, OW * N).transpose(1, 2, 0)

    def _scatter(self, dy: Array, w: Array, dx: Array) -> None:
        """Fill ``dx``: each output pixel's gradient goes back to the pixels of its window."""
        (H, W, N, C), (OH, OW, _, F), (KH, KW) = dx.shape, dy.shape, self.kernel_size
        p, s, d = self.padding, self.stride, self.dilation
        spread = self.workspace.array("spread", (H + 2 * p, W + 2 * p, N, C), dx.dtype)
        spread[...] = 0
        shares = self.workspace.array("shares", (KH, KW, OH, OW, N, C), dx.dtype)
        np.matmul(flat(dy), w.reshape(KH * KW, C, F).transpose(0, 2, 1), out=shares.reshape(KH * KW, -1, C))
        for i, j in np.ndindex(KH, KW):
            spread[strided(i * d, OH, s), strided(j * d, OW, s)] += shares[i, j]
        dx[...] = spread[p : p + H, p : p + W]


class Winograd:
    """F(m x m, 3x3) of Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016).

    With tiles d of m+2 by m+2 inputs, m apart, kernels g of 3x3, and tiles y of m by m outputs::

        y = A^T [(G g G^T) * (B^T d B)] A

    where * is a product of matrices over the channels, one for each of the (m+2)^2 places of a tile: for
    m = 7 there are 1.65 multiplications an output instead of 9. The gradients are the adjoint of this
    formula, and use the same transformed inputs.

    A^T, B^T and G, too, are applied as products of matrices, first over the rows of a tile, then over its
    columns: at every pixel a batch has a long run of numbers, and the product of a small matrix with such
    runs takes little more than one pass over memory. A tile that reaches over the border has matrices of
    its own, without multiplications by zeros and without unused results.
    """

    def __init__(self, shape: Shape, padding: int) -> None:
        H, W, _ = shape
        OH, OW = output_length(H, 3, 1, padding), output_length(W, 3, 1, padding)
        self.width = W
        self.m = min(POINTS, key=lambda m: -(-OH // m) * -(-OW // m) * (m + 2) ** 2)  # fewest multiplications
        self.down, across = tiles(H, OH, self.m, padding), tiles(W, OW, self.m, padding)
        at_once = TUNING.winograd_tiles
        self.across = [across[first : first + at_once] for first in range(0, len(across), at_once)]
        self.workspace = Workspace()

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (_, W, N, C), F, a = x.shape, w.shape[-1], self.m + 2
        (AT, BT, _), array, kernels = cook_toom(self.m, x.dtype), self.workspace.array, self._transform_kernels(w)
        x, y = pixels(x), pixels(y)
        rows = array("rows", (a, W, N * C), x.dtype)
        for i, top in enumerate(self.down):
            np.matmul(BT[:, top.within], x[top.inputs].swapaxes(0, 1), out=rows.swapaxes(0, 1))
            for k, group in enumerate(self.across):
                T = len(group)
                inputs = array(f"inputs {i} {k}", (a, a, T, N * C), x.dtype)
                products = array("products", (a, a, T * N * F), x.dtype)
                half = array("half", (top.height, a, T, N * F), x.dtype)
                for j, left in enumerate(group):
                    np.matmul(BT[:, left.within], rows[:, left.inputs], out=inputs[:, :, j])
                np.matmul(inputs.reshape(a * a, T * N, C), kernels, out=products.reshape(a * a, T * N, F))
                np.matmul(AT[: top.height], products.swapaxes(0, 1), out=pixels(half).swapaxes(0, 1))
                for j, left in enumerate(group):
                    np.matmul(AT[: left.height], half[:, :, j], out=y[top.outputs, left.outputs])

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (_, OW, N, F), W, C, a = dy.shape, self.width, w.shape[2], self.m + 2
        (AT, _, G), array = cook_toom(self.m, dy.dtype), self.workspace.array
        kernels = self._transform_kernels(w.swapaxes(2, 3).copy())  # BLAS is slower where it has to transpose
        dkernels, share = (array(key, (a * a, C, F), w.dtype) for key in ("dkernels", "share"))
        dy = pixels(dy)
        half, rows = array("half", (a, OW, N * F), dy.dtype), array("rows", (a, W, N * C), dy.dtype)
        for i, top in enumerate(self.down):
            np.matmul(AT[: top.height].T, dy[top.outputs].swapaxes(0, 1), out=half.swapaxes(0, 1))
            for k, group in enumerate(self.across):
                T = len(group)
                dproducts = array("products", (a, a, T, N * F), dy.dtype)
                for j, left in enumerate(group):
                    np.matmul(AT[: left.height].T, half[:, left.outputs], out=dproducts[:, :, j])
                inputs = array(f"inputs {i} {k}", (a * a, T * N, C), dy.dtype).swapaxes(1, 2)
                np.matmul(inputs, dproducts.reshape(a * a, T * N, F), out=share if i or k else dkernels)
                if i or k:
                    dkernels += share
                if dx is not None:
                    dinputs = array("dinputs", (a, a, T, N * C), dy.dtype)
                    np.matmul(dproducts.reshape(a * a, T * N, F), kernels, out=dinputs.reshape(a * a, T * N, C))
                    for j, left in enumerate(group):
                        self._add_tile(left, dinputs[:, :, j], rows)
            if dx is not None:
                self._add_tile(top, rows.swapaxes(0, 1), pixels(dx).swapaxes(0, 1))
        np.matmul(G.T, np.matmul(G.T, dkernels.reshape(a, -1)).reshape(3, a, -1), out=dw.reshape(3, 3, -1))

    def _add_tile(self, tile: "Tile", values: Array, out: Array) -> None:
        """B times the values (.., m + 2, L) of a tile, to its place in (.., H, L), where earlier tiles may be."""
        B, old = cook_toom(self.m, out.dtype)[1][:, tile.within].T, tile.overlap
        place = out[..., tile.inputs, :]
        np.matmul(B[old:], values, out=place[..., old:, :])
        if old:
            share = self.workspace.array("overlap", (*place.shape[:-2], old, place.shape[-1]), out.dtype)
            np.matmul(B[:old], values, out=share)
            place[..., :old, :] += share

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T, the last two axes as those of ``w``."""
        (_, _, G), (_, _, C, F), a = cook_toom(self.m, w.dtype), w.shape, self.m + 2
        half = np.matmul(G, w.reshape(3, -1)).reshape(a, 3, -1)
        return np.matmul(G, half, out=self.workspace.array("kernels", (a, a, C * F), w.dtype)).reshape(a * a, C, F)


@dataclass(frozen=True)
class Tile:
    """A tile's place along one side of the image.

    Attributes:
        inputs: the pixels of the image that it covers.
        within: their positions among its m + 2; the others lie outside.
        overlap: the number of its first pixels that are the last ones of the tile before.
        outputs: the pixels of the output that it gives.
        height: the number of those; m, except for the last tile.
    """

    inputs: slice
    within: slice
    overlap: int
    outputs: slice
    height: int


def tiles(length: int, outputs: int, m: int, padding: int) -> list[Tile]:
    """The tiles along a side of ``length`` pixels."""
    found, end = [], 0
    for first in range(0, outputs, m):
        start, last = first - padding, min(first + m, outputs)
        lo, hi = (min(max(pixel, 0), length) for pixel in (start, start + m + 2))
        inside = slice(lo - start, hi - start)
        found.append(Tile(slice(lo, hi), inside, min(max(end - lo, 0), hi - lo), slice(first, last), last - first))
        end = hi
    return found


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


def padded(workspace: Workspace, x: Array, padding: int, size: tuple[int, int]) -> Array:
    """Images (H, W, N, C) in zeros of a larger size, ``padding`` from the top and the left."""
    (H, W, N, C), p = x.shape, padding
    image = workspace.array("padded", (*size, N, C), x.dtype)
    for border in (image[:p], image[p + H :], image[p : p + H, :p], image[p : p + H, p + W :]):
        border[...] = 0
    image[p : p + H, p : p + W] = x
    return image


def pixels(x: Array) -> Array:
    """Contiguous (H, W, ..) with all values of a pixel as one run: (H, W, L)."""
    return x.reshape(*x.shape[:2], -1)


def flat(y: Array) -> Array:
    """Contiguous (..., F) as a matrix of rows F."""
    return y.reshape(-1, y.shape[-1])


def bands(rows: int, bytes_a_row: int) -> list[tuple[int, int]]:
    """Runs of rows, (start, stop), each of at most BAND bytes or of one row."""
    step = max(1, BAND // bytes_a_row)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def extent(kernel_size: int, dilation: int) -> int:
    """The pixels that a kernel spans along one side, ``dilation`` from one of its positions to the next."""
    return dilation * (kernel_size - 1) + 1


def output_length(length: int, kernel_size: int, stride: int, padding: int = 0, dilation: int = 1) -> int:
    """How many windows fit along one side of an image."""
    return (length + 2 * padding - extent(kernel_size, dilation)) // stride + 1


def strided(start: int, count: int, stride: int) -> slice:
    """``count`` positions from ``start`` on, ``stride`` apart."""
    return slice(start, start + stride * (count - 1) + 1, stride)
