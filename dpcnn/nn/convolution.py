"""Convolution kernels: im2col for any shape, Winograd's for 3x3 with stride 1. Shapes: see layers.py.

Each has the two methods of :class:`Kernel`. They work on bands: some rows of the output at a time,
so that what lies between the passes stays in the second-level cache.
"""

from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dpcnn.nn.workspace import Array, Shape, Workspace

BAND = 1 << 20
"""Bytes of a band's largest array; a band has one row of outputs or tiles at least."""

WINOGRAD_CHANNELS = 8
"""With fewer input channels the transforms cost more than the multiplications that they save."""


class Kernel(Protocol):
    """One way to compute a convolution and its gradients; ``backward`` refers to the last ``forward``."""

    def forward(self, x: Array, w: Array, y: Array) -> None:
        """Fill ``y`` (OH, OW, N, F) from ``x`` (H, W, N, C) and ``w`` (KH, KW, C, F)."""

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        """Fill ``dw`` and, unless it is None, ``dx`` from ``dy``; all contiguous."""


def choose_kernel(shape: Shape, kernel: tuple[int, int], stride: int, padding: int) -> Kernel:
    """The fastest kernel for inputs (H, W, C): decided by shape alone, so that the bits are, too."""
    H, W, C = shape
    if kernel == (3, 3) and stride == padding == 1 and H % 2 == W % 2 == 0 and C >= WINOGRAD_CHANNELS:
        return Winograd()
    return Im2col(kernel, stride, padding)


class Im2col:
    """Windows as the rows of a matrix, after Chellapilla, Puri and Simard, "High performance
    convolutional neural networks for document processing" (2006)."""

    def __init__(self, kernel: tuple[int, int], stride: int, padding: int) -> None:
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.workspace = Workspace()

    def forward(self, x: Array, w: Array, y: Array) -> None:
        self.padded = padded(self.workspace, x, self.padding)
        for start, stop in self._bands(y):
            np.matmul(self._columns(start, stop, y), w.reshape(-1, w.shape[-1]), out=flat(y[start:stop]))

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        total = dw.reshape(-1, w.shape[-1])
        share = self.workspace.array("share", total.shape, total.dtype)
        for start, stop in self._bands(dy):
            np.matmul(self._columns(start, stop, dy).T, flat(dy[start:stop]), out=share if start else total)
            if start:
                total += share
        if dx is not None:
            self._scatter(dy, w, dx)

    def _bands(self, y: Array) -> list[tuple[int, int]]:
        return bands(len(y), int(np.prod(self.kernel)) * self.padded[0].nbytes)

    def _columns(self, start: int, stop: int, y: Array) -> Array:
        """The windows of some output rows: ((stop - start) * OW * N, KH * KW * C)."""
        (KH, KW), (_, _, N, C) = self.kernel, self.padded.shape
        rows = self.padded[start * self.stride : (stop - 1) * self.stride + KH]
        windows = sliding_window_view(rows, (KH, KW), axis=(0, 1))[:: self.stride, :: self.stride]  # (.., N, C, KH, KW)
        shape = stop - start, y.shape[1], N, KH, KW, C
        if C > 1:
            columns = self.workspace.array("columns", shape, y.dtype)
            np.copyto(columns, windows.transpose(0, 1, 2, 4, 5, 3))
            return columns.reshape(-1, KH * KW * C)
        planes = self.workspace.array("columns", shape[3:] + shape[:3], y.dtype)  # long runs to copy
        np.copyto(planes, windows.transpose(4, 5, 3, 0, 1, 2))
        return planes.reshape(KH * KW * C, -1).T

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
    """F(2x2, 3x3) of Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016).

    With tiles d of 4x4 inputs (2 apart), kernels g, and tiles of 2x2 outputs::

        y = A^T [(G g G^T) * (B^T d B)] A

              1  0 -1  0             1    0    0            1  1  1  0
        B^T = 0  1  1  0       G =  1/2  1/2  1/2     A^T = 0  1 -1  1
              0 -1  1  0            1/2 -1/2  1/2
              0 -1  0  1             0    0    1

    where * is a product of matrices over the channels, one for each of the 16 places of a tile: 4
    multiplications an output instead of 9. (The last rows have the opposite sign of the paper's, which
    cancels.) The gradients are the adjoint of this formula, and use the same transformed inputs.

    B^T and A^T, too, are applied as products of matrices, since those of so few rows run at the speed of
    memory, and faster than additions of arrays: first over the rows of a tile, then over its columns.
    """

    BT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
    G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    AT = np.array([[1, 1, 1, 0], [0, 1, -1, 1]])

    def __init__(self) -> None:
        self.workspace = Workspace()
        self.inputs: list[Array] = []

    def forward(self, x: Array, w: Array, y: Array) -> None:
        (H, W, N, C), F, array = x.shape, w.shape[-1], self.workspace.array
        BT, AT = self.BT.astype(x.dtype), self.AT.astype(x.dtype)
        kernels, image, m = self._transform_kernels(w), padded(self.workspace, x, 1), W // 2
        tile_rows = windows(image.reshape(H + 2, -1), 0)
        self.inputs = []
        for lo, hi in self._bands(y, max(C, F)):
            n = hi - lo
            rows = array("rows", (n, 4, W + 2, N * C), x.dtype)
            np.matmul(BT, tile_rows[lo:hi], out=rows.reshape(n, 4, -1))
            inputs = array(f"inputs {lo}", (4, 4, n, m, N * C), x.dtype)
            np.matmul(BT, windows(rows, 2), out=inputs.transpose(2, 0, 3, 1, 4))
            products = array("products", (4, 4, n, m, N * F), x.dtype)
            np.matmul(inputs.reshape(16, -1, C), kernels, out=products.reshape(16, -1, F))
            half = array("half", (4, 2, n, m, N * F), x.dtype)
            np.matmul(AT, products.reshape(4, 4, -1).swapaxes(0, 1), out=half.reshape(4, 2, -1))
            np.matmul(AT, half.transpose(2, 1, 3, 0, 4), out=y[2 * lo : 2 * hi].reshape(n, 2, m, 2, N * F))
            self.inputs.append(inputs)

    def backward(self, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (_, W, N, F), C, array = dy.shape, w.shape[2], self.workspace.array
        A, kernels, m = self.AT.T.astype(dy.dtype), self._transform_kernels(w), W // 2
        dkernels, share = array("dkernels", kernels.shape, w.dtype), array("share", kernels.shape, w.dtype)
        carry = array("carry", (W, N, C), dy.dtype)
        for (lo, hi), inputs in zip(self._bands(dy, max(C, F)), self.inputs, strict=True):
            n = hi - lo
            half = array("half", (n, 4, m, 2, N * F), dy.dtype)
            np.matmul(A, dy[2 * lo : 2 * hi].reshape(n, 2, -1), out=half.reshape(n, 4, -1))
            dproducts = array("products", (4, 4, n, m, N * F), dy.dtype)
            np.matmul(A, half, out=dproducts.transpose(2, 0, 3, 1, 4))
            products = dproducts.reshape(16, -1, F)
            np.matmul(inputs.reshape(16, -1, C).transpose(0, 2, 1), products, out=share if lo else dkernels)
            if lo:
                dkernels += share
            if dx is None:
                continue
            dinputs = array("dinputs", (4, 4, n, m, N, C), dy.dtype)
            np.matmul(products, kernels.transpose(0, 2, 1), out=dinputs.reshape(16, -1, C))
            rows = array("drows", (4, n, W, N, C), dy.dtype)
            spread_input(dinputs.transpose(1, 3, 0, 2, 4, 5), rows.transpose(2, 0, 1, 3, 4))
            spread_input(rows, dx[2 * lo : 2 * hi])
            if lo:  # tiles overlap, also those of two bands
                dx[2 * lo - 1] += rows[0, 0]
                dx[2 * lo] += carry
            carry[...] = rows[3, -1]
        G = self.G.astype(w.dtype)
        np.matmul(G.T, np.matmul(G.T, dkernels.reshape(4, -1)).reshape(3, 4, -1), out=dw.reshape(3, 3, -1))

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T: (16, C, F)."""
        G, (_, _, C, F) = self.G.astype(w.dtype), w.shape
        half = np.matmul(G, w.reshape(3, -1)).reshape(4, 3, -1)
        return np.matmul(G, half, out=self.workspace.array("kernels", (4, 4, C * F), w.dtype)).reshape(16, C, F)

    def _bands(self, y: Array, channels: int) -> list[tuple[int, int]]:
        """In rows of tiles."""
        OH, OW, N, _ = y.shape
        return bands(OH // 2, 16 * (OW // 2) * N * channels * y.itemsize)


def windows(array: Array, axis: int) -> Array:
    """Overlapping runs of 4 along an axis, 2 apart, as a view: (..., 2n + 2, L) to (..., n, 4, L)."""
    every = (slice(None),) * axis
    return sliding_window_view(array, 4, axis)[(*every, slice(None, None, 2))].swapaxes(-1, -2)


def spread_input(v: Array, out: Array) -> None:
    """The adjoint of B^T over :func:`windows`: (4, n, ...) to (2n, ...), leaving out the border's two places.

    By additions, since windows overlap.
    """
    v0, v1, v2, v3 = v
    even, odd = out[0::2], out[1::2]
    np.subtract(v1, v2, out=even)
    even -= v3
    even[1:] += v3[:-1]
    np.add(v1, v2, out=odd)
    odd -= v0
    odd[:-1] += v0[1:]


def padded(workspace: Workspace, x: Array, padding: int) -> Array:
    """A copy of images (H, W, N, C) with zeros around each."""
    H, W, N, C = x.shape
    p = padding
    image = workspace.array("padded", (H + 2 * p, W + 2 * p, N, C), x.dtype)
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
