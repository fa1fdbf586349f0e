"""Winograd's kernel for large square convolutions with stride 1. Shapes: see layer.py."""

from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import bands, output_length, pixels
from dpcnn.nn.layer import Memory
from dpcnn.nn.winograd import add_tile, cook_toom, multiply, on_both_sides, tiles

SIDES = 3, 4, 5
"""The sides s of a block of the kernel: :data:`dpcnn.nn.winograd.POINTS` has the points of F(s, s)."""


class Large:
    """A kernel divided into blocks that share the transformed image: F(s x s, s x s) of :mod:`dpcnn.nn.winograd`.

    The kernel of r by r becomes q by q blocks g of s by s, with zeros at its end. The blocks lie s pixels apart, and so
    do the tiles of the image. So the block in row i and column j, for the output tile in row t and column u, takes the
    input tile in row t + i and column u + j::

        y_tu = A^T [sum over i, j of (G g_ij G^T) * (B^T d_(t+i)(u+j) B)] A

    Per output, this takes 13 multiplications instead of 81 for r = 9 and s = 5.

    In the comments, a tile covers h by v pixels of the image and gives m by n outputs; a row has U output tiles and
    V = U + q - 1 input tiles; N C is one axis of N * C numbers.
    """

    def __init__(self, shape: Shape, padding: int, r: int) -> None:
        """For inputs of ``shape`` (H, W, C) and kernels of ``r`` by ``r``."""
        sides = [(length, output_length(length, r, 1, padding)) for length in shape[:2]]
        self.width, self.r = shape[1], r
        counts = {s: prod(-(-outputs // s) for _, outputs in sides) for s in SIDES}
        self.s = s = min(SIDES, key=lambda s: counts[s] * ((2 * s - 1) * -(-r // s)) ** 2)
        self.q, self.a = -(-r // s), 2 * s - 1
        self.positions = (self.q * self.a) ** 2
        self.products = counts[s] * self.positions
        self.down, self.across = ([slice(*band) for band in bands(outputs, 1, s)] for _, outputs in sides)
        self.tiles_down, self.tiles_across = (
            tiles(length, (-(-outputs // s) + self.q - 1) * s, s, s, padding) for length, outputs in sides
        )

    def memory(self, shape: Shape, output: Shape) -> Memory:
        C, F, a, U, V = shape[-1], output[-1], self.a, len(self.across), len(self.tiles_across)
        rows, of_kernels = a * self.width * C, 2 * (self.q * a) ** 2 + (self.q * self.s) ** 2
        return Memory(
            len(self.tiles_down) * a**2 * V * C,
            forward=rows + (2 * a + self.s) * a * U * F,
            backward=rows + a * output[1] * F + a**2 * (self.q * U * F + U * C + V * C),
            weights=of_kernels * C * F,
        )

    def forward(self, x: Array, w: Array, y: Array) -> Array:
        (_, _, N, C), F, a, U = x.shape, w.shape[-1], self.a, len(self.across)
        saved, kernels, y = self._transform_image(x), self._transform_kernels(w), pixels(y)
        total, share = empty((2, a * a, U * N, F), x.dtype)
        AT, half = cook_toom(self.s, self.s, x.dtype)[0], empty((self.s, a, U, N * F), x.dtype)
        for t, rows in enumerate(self.down):
            for i, j in np.ndindex(self.q, self.q):
                # (a a, U N, C) x (a a, C, F) -> (a a, U N, F)
                multiply(self._under(saved[t + i], j, C), kernels[i, j], share if i or j else total)
                if i or j:
                    total += share
            own = half[: rows.stop - rows.start]
            # (m, a) x (a, a, U N F) -> (a, m, U N F)
            np.matmul(AT[: len(own)], total.reshape(a, a, -1).swapaxes(0, 1), out=pixels(own).swapaxes(0, 1))
            for u, columns in enumerate(self.across):
                # (n, a) x (m, a, N F) -> (m, n, N F)
                np.matmul(AT[: columns.stop - columns.start], own[:, :, u], out=y[rows, columns])
        return saved

    def backward(self, saved: Array, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (N, F), C, q, a, U = dy.shape[2:], w.shape[2], self.q, self.a, len(self.across)
        dkernels, share = np.zeros((q, q, a * a, C, F), dy.dtype), empty((a * a, C, F), dy.dtype)
        kernels = self._transform_kernels(w.swapaxes(2, 3).copy())  # (.., F, C); BLAS is slower if it transposes
        dproducts = empty((q, a * a, U * N, F), dy.dtype)  # of the last q rows of tiles
        for t in range(len(self.tiles_down)):
            if t < len(self.down):
                self._transform_outputs(dy, t, dproducts[t % q])
                for i, j in np.ndindex(q, q):
                    # (a a, C, U N) x (a a, U N, F) -> (a a, C, F)
                    multiply(self._under(saved[t + i], j, C).swapaxes(1, 2), dproducts[t % q], share)
                    dkernels[i, j] += share
            if dx is not None:
                rows = {i: dproducts[(t - i) % q] for i in range(q) if 0 <= t - i < len(self.down)}
                self._input_gradient(t, rows, kernels, dx)
        self._transform_back(dkernels, dw)

    def _input_gradient(self, t: int, dproducts: dict[int, Array], kernels: Array, dx: Array) -> None:
        """Add the gradient of a row of input tiles to ``dx``, from those of the output tiles that each row i of the
        kernel's blocks reaches from there."""
        (_, W, N, C), a, U, dtype = dx.shape, self.a, len(self.across), dx.dtype
        dinputs, share = empty((a, a, len(self.tiles_across), N * C), dtype), empty((a * a, U * N, C), dtype)
        dinputs[...] = 0
        for i, of_row in dproducts.items():
            for j in range(self.q):
                # (a a, U N, F) x (a a, F, C) -> (a a, U N, C)
                multiply(of_row, kernels[i, j], share)
                under = self._under(dinputs, j, C)
                under += share
        rows, B = empty((a, W, N * C), dtype), cook_toom(self.s, self.s, dtype)[1].T
        for u, left in enumerate(self.tiles_across):
            add_tile(B, left, dinputs[:, :, u], rows)  # (a, a, N C) into (a, W, N C)
        add_tile(B, self.tiles_down[t], rows.swapaxes(0, 1), pixels(dx).swapaxes(0, 1))  # (W, a, N C) into (W, H, N C)

    def _transform_image(self, x: Array) -> Array:
        """B^T d B of all input tiles: (rows of tiles, a, a, V, N C)."""
        (_, W, N, C), a, BT = x.shape, self.a, cook_toom(self.s, self.s, x.dtype)[1]
        x, rows = pixels(x), empty((a, W, N * C), x.dtype)
        transformed = empty((len(self.tiles_down), a, a, len(self.tiles_across), N * C), x.dtype)
        for top, inputs in zip(self.tiles_down, transformed, strict=True):
            # (a, h) x (W, h, N C) -> (W, a, N C)
            np.matmul(BT[:, top.within], x[top.inputs].swapaxes(0, 1), out=rows.swapaxes(0, 1))
            for u, left in enumerate(self.tiles_across):
                # (a, v) x (a, v, N C) -> (a, a, N C)
                np.matmul(BT[:, left.within], rows[:, left.inputs], out=inputs[:, :, u])
        return transformed

    def _under(self, inputs: Array, j: int, C: int) -> Array:
        """Of a row of input tiles (a, a, V, N C), those that column j of the kernel's blocks takes: (a a, U N, C)."""
        a, V, U = self.a, len(self.tiles_across), len(self.across)
        return inputs.reshape(a * a, V, -1, C)[:, j : j + U].reshape(a * a, -1, C)

    def _transform_outputs(self, dy: Array, t: int, out: Array) -> None:
        """Fill ``out`` (a a, U N, F) with A dy A^T of a row of output tiles."""
        (_, OW, N, F), a, rows, AT = dy.shape, self.a, self.down[t], cook_toom(self.s, self.s, dy.dtype)[0]
        half, in_tiles = empty((a, OW, N * F), dy.dtype), out.reshape(a, a, -1, N * F)
        # (a, m) x (OW, m, N F) -> (OW, a, N F)
        np.matmul(AT[: rows.stop - rows.start].T, pixels(dy)[rows].swapaxes(0, 1), out=half.swapaxes(0, 1))
        for u, columns in enumerate(self.across):
            # (a, n) x (a, n, N F) -> (a, a, N F)
            np.matmul(AT[: columns.stop - columns.start].T, half[:, columns], out=in_tiles[:, :, u])

    def _transform_kernels(self, w: Array) -> Array:
        """G g G^T of the blocks of ``w`` (r, r, C, F): (q, q, a a, C, F)."""
        G, (r, _, C, F), s, q, a = cook_toom(self.s, self.s, w.dtype)[2], w.shape, self.s, self.q, self.a
        whole = np.zeros((q * s, q * s, C * F), w.dtype)
        whole[:r, :r] = w.reshape(r, r, C * F)
        kernels = empty((q, q, a, a, C * F), w.dtype)
        for i, j in np.ndindex(q, q):
            on_both_sides(G, whole[i * s : (i + 1) * s, j * s : (j + 1) * s], kernels[i, j])
        return kernels.reshape(q, q, a * a, C, F)

    def _transform_back(self, dkernels: Array, dw: Array) -> None:
        """G^T (a, a) G for the gradients of transformed blocks (q, q, a a, C, F): fills ``dw`` (r, r, C, F)."""
        G, (r, _, C, F), s, q, a = cook_toom(self.s, self.s, dw.dtype)[2], dw.shape, self.s, self.q, self.a
        whole = empty((q * s, q * s, C * F), dw.dtype)
        for i, j in np.ndindex(q, q):
            dblock = whole[i * s : (i + 1) * s, j * s : (j + 1) * s]
            on_both_sides(G.T, dkernels[i, j].reshape(a, a, C * F), dblock)
        dw[...] = whole.reshape(q * s, q * s, C, F)[:r, :r]
