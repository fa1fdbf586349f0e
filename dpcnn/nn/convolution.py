"""Convolution kernels: im2col for any shape, Winograd's for 3x3 with stride 1. Shapes: see layers.py.

Each has the two methods of :class:`Kernel`. They work on bands: some rows of the output at a time,
so that what lies between the passes stays in the second-level cache.
"""

from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view

from dpcnn.nn.workspace import Array, Shape, Workspace

BAND = 1 << 21
"""Bytes of a band's largest array; a band has one row of outputs or tiles at least."""

WINOGRAD_CHANNELS = 8
"""With fewer input channels the transforms cost more than the multiplications that they save."""

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


def choose_kernel(shape: Shape, kernel: tuple[int, int], stride: int, padding: int) -> Kernel:
    """The fastest kernel for inputs (H, W, C): decided by shape alone, so that the bits are, too."""
    if kernel == (3, 3) and stride == 1 and shape[-1] >= WINOGRAD_CHANNELS:
        return Winograd(shape, padding)
    return Im2col(kernel, stride, padding)


class Im2col:
    """Windows as the rows of a matrix, after Chellapilla, Puri and Simard, "High performance
    convolutional neural networks for document processing" (2006): a product for each row of the output."""

    def __init__(self, kernel: tuple[int, int], stride: int, padding: int) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.workspace = Workspace()
        self.bands: list[tuple[int, int]] = []
        self.columns: list[Array] = []  # for each band

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (H, W, _, _), (KH, KW), p, F = x.shape, self.kernel, self.padding, w.shape[-1]
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
        (KH, KW), (_, _, N, C), s = self.kernel, image.shape, self.stride
        rows = image[lo * s : (hi - 1) * s + KH]
        windows = sliding_window_view(rows, (KH, KW), axis=(0, 1))[::s, ::s]  # (.., OW, N, C, KH, KW)
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
        (H, W, N, C), (OH, OW, _, F), (KH, KW) = dx.shape, dy.shape, self.kernel
        p, s = self.padding, self.stride
        spread = self.workspace.array("spread", (H + 2 * p, W + 2 * p, N, C), dx.dtype)
        spread[...] = 0
        shares = self.workspace.array("shares", (KH, KW, OH, OW, N, C), dx.dtype)
        np.matmul(flat(dy), w.reshape(KH * KW, C, F).transpose(0, 2, 1), out=shares.reshape(KH * KW, -1, C))
        for i, j in np.ndindex(KH, KW):
            spread[strided(i, OH, s), strided(j, OW, s)] += shares[i, j]
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
    runs takes little more than one pass over memory.
    """

    def __init__(self, shape: Shape, padding: int) -> None:
        H, W, _ = shape
        self.padding, self.workspace = padding, Workspace()
        OH, OW = output_length(H, 3, 1, padding), output_length(W, 3, 1, padding)
        self.m = min(POINTS, key=lambda m: -(-OH // m) * -(-OW // m) * (m + 2) ** 2)  # fewest multiplications
        self.tiles = -(-OH // self.m), -(-OW // self.m)
        self.bands: list[tuple[int, int]] = []  # in rows of tiles
        self.inputs: list[Array] = []  # transformed, for each band

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (_, _, N, C), F, m, (TH, TW) = x.shape, w.shape[-1], self.m, self.tiles
        (AT, BT, _), array, a = cook_toom(m, x.dtype), self.workspace.array, m + 2
        image = padded(self.workspace, x, self.padding, (TH * m + 2, TW * m + 2))
        image_tiles = windows(image.reshape(TH * m + 2, TW * m + 2, N * C), 0, m)
        kernels = self._transform_kernels(w)
        self.bands = bands(TH, a * a * TW * N * max(C, F) * x.itemsize)
        self.inputs = []
        for lo, hi in self.bands:
            n = hi - lo
            rows = array("rows", (n, a, TW * m + 2, N * C), x.dtype)
            np.matmul(BT, image_tiles[lo:hi], out=rows.swapaxes(1, 2))
            inputs = array(f"inputs {lo}", (a, a, n, TW, N * C), x.dtype)
            np.matmul(BT, windows(rows, 2, m), out=inputs.transpose(2, 0, 3, 1, 4))
            products = array("products", (a, a, n, TW, N * F), x.dtype)
            np.matmul(inputs.reshape(a * a, -1, C), kernels, out=products.reshape(a * a, -1, F))
            half = array("half", (n, m, TW, a, N * F), x.dtype)
            np.matmul(AT, products.transpose(2, 3, 1, 0, 4), out=half.transpose(0, 2, 3, 1, 4))
            band = y[lo * m : hi * m]
            fits = band.shape[:2] == (n * m, TW * m)
            outputs = band if fits else array("outputs", (n * m, TW * m, N, F), x.dtype)
            np.matmul(AT, half, out=outputs.reshape(n, m, TW, m, N * F))
            if not fits:
                band[...] = outputs[: len(band), : y.shape[1]]
            self.inputs.append(inputs)

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (_, _, N, F), C, m, (TH, TW) = dy.shape, w.shape[2], self.m, self.tiles
        (_, _, G), array, a = cook_toom(m, dy.dtype), self.workspace.array, m + 2
        kernels = self._transform_kernels(w.swapaxes(2, 3).copy())  # BLAS is slower where it has to transpose
        dkernels, share = (array(key, (a * a, C, F), w.dtype) for key in ("dkernels", "share"))
        dimage = array("dimage", (TH * m + 2, TW * m + 2, N * C), dy.dtype)
        for (lo, hi), inputs in zip(self.bands, self.inputs, strict=True):
            dproducts = self._spread_output(lo, hi, dy)
            np.matmul(inputs.reshape(a * a, -1, C).swapaxes(1, 2), dproducts, out=share if lo else dkernels)
            if lo:
                dkernels += share
            if dx is not None:
                dinputs = array("dinputs", inputs.shape, dy.dtype)
                np.matmul(dproducts, kernels, out=dinputs.reshape(a * a, -1, C))
                self._spread_input(lo, hi, dinputs, dimage)
        np.matmul(G.T, np.matmul(G.T, dkernels.reshape(a, -1)).reshape(3, a, -1), out=dw.reshape(3, 3, -1))
        if dx is not None:
            (H, W, _, _), p = dx.shape, self.padding
            dx[...] = dimage.reshape(TH * m + 2, TW * m + 2, N, C)[p : p + H, p : p + W]

    def _spread_output(self, lo: int, hi: int, dy: Array) -> Array:
        """A dy A^T for the rows of tiles from lo to hi: ((m + 2)^2, tiles * N, F)."""
        (_, OW, N, F), m, TW, array = dy.shape, self.m, self.tiles[1], self.workspace.array
        n, a, A, band = hi - lo, m + 2, cook_toom(m, dy.dtype)[0].T, dy[lo * m : hi * m]
        if band.shape[:2] != (n * m, TW * m):
            whole = array("outputs", (n * m, TW * m, N, F), dy.dtype)
            whole[: len(band), :OW] = band
            whole[len(band) :] = whole[:, OW:] = 0
            band = whole
        half = array("half", (n, a, TW * m, N * F), dy.dtype)
        np.matmul(A, band.reshape(n, m, TW * m, N * F).swapaxes(1, 2), out=half.swapaxes(1, 2))
        dproducts = array("products", (a, a, n, TW, N * F), dy.dtype)
        np.matmul(A, half.reshape(n, a, TW, m, N * F), out=dproducts.transpose(2, 0, 3, 1, 4))
        return dproducts.reshape(a * a, -1, F)

    def _spread_input(self, lo: int, hi: int, dinputs: Array, dimage: Array) -> None:
        """B dinputs B^T, added up where tiles overlap, for the rows of tiles from lo to hi."""
        m, TW, B = self.m, self.tiles[1], cook_toom(self.m, dinputs.dtype)[1].T
        rows = self.workspace.array("rows", (hi - lo, m + 2, TW * m + 2, dimage.shape[-1]), dimage.dtype)
        self._add_tiles(B, dinputs.reshape(*dinputs.shape[:4], -1).transpose(2, 0, 3, 1, 4), rows)
        above = dimage[lo * m : lo * m + 2].copy()  # what the band above has left in the two rows of both
        self._add_tiles(B, rows.transpose(2, 0, 1, 3), dimage[lo * m : hi * m + 2].swapaxes(0, 1))
        if lo:
            dimage[lo * m : lo * m + 2] += above

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T, the last two axes as those of ``w``."""
        (_, _, G), (_, _, C, F), a = cook_toom(self.m, w.dtype), w.shape, self.m + 2
        half = np.matmul(G, w.reshape(3, -1)).reshape(a, 3, -1)
        return np.matmul(G, half, out=self.workspace.array("kernels", (a, a, C * F), w.dtype)).reshape(a * a, C, F)

    def _add_tiles(self, B: Array, tiles: Array, out: Array) -> None:
        """B times each tile, added up where tiles overlap: (..., n, m + 2, L) to (..., n * m + 2, L)."""
        *others, n, _, L = tiles.shape
        m = self.m
        np.matmul(B[:m], tiles, out=out[..., :-2, :].reshape(*others, n, m, L))
        out[..., -2:, :] = 0
        overlap = self.workspace.array("overlap", (*others, n, 2, L), tiles.dtype)
        np.matmul(B[m:], tiles, out=overlap)
        out[..., m::m, :] += overlap[..., 0, :]
        out[..., m + 1 :: m, :] += overlap[..., 1, :]


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


def windows(array: Array, axis: int, step: int) -> Array:
    """Overlapping runs along an axis, as a view: (.., n * step + 2, .., L) to (.., n, .., step + 2, L)."""
    shape, strides = list(array.shape), list(array.strides)
    along = strides[axis]
    shape[axis], strides[axis] = (shape[axis] - 2) // step, step * along
    return as_strided(array, (*shape[:-1], step + 2, shape[-1]), (*strides[:-1], along, strides[-1]))


def padded(workspace: Workspace, x: Array, padding: int, size: tuple[int, int]) -> Array:
    """Images (H, W, N, C) in zeros of a larger size, ``padding`` from the top and the left."""
    (H, W, N, C), p = x.shape, padding
    image = workspace.array("padded", (*size, N, C), x.dtype)
    for border in (image[:p], image[p + H :], image[p : p + H, :p], image[p : p + H, p + W :]):
        border[...] = 0
    image[p : p + H, p : p + W] = x
    return image


def flat(y: Array) -> Array:
    """Contiguous (..., F) as a matrix of rows F."""
    return y.reshape(-1, y.shape[-1])


def bands(rows: int, bytes_a_row: int) -> list[tuple[int, int]]:
    """Runs of rows, (start, stop), each of at most BAND bytes or of one row."""
    step = max(1, BAND // bytes_a_row)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def output_length(length: int, window: int, stride: int, padding: int = 0) -> int:
    """How many windows fit along one side of an image."""
    return (length + 2 * padding - window) // stride + 1


def strided(start: int, count: int, stride: int) -> slice:
    """``count`` places from ``start`` on, ``stride`` apart."""
    return slice(start, start + stride * (count - 1) + 1, stride)
