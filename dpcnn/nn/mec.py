"""Convolutions of any shape, by lowering along the width. Shapes: see layer.py."""

from math import gcd

import numpy as np
from numpy.lib.stride_tricks import as_strided

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.convolution import extent, flat, inside, phases, reach, strided
from dpcnn.nn.layer import Memory

SHARES = 1 << 21
"""The largest size in bytes of gradients of weights or windows that are kept before they are added up."""

LONG_RUN = 8
"""The fewest channels that are copied as they lie in memory, one pixel after the other."""


class Mec:
    """A matrix product per row of the output: Cho and Brand, "MEC: memory-efficient convolution for deep neural
    network" (2017).

    The windows of 1 x KW pixels of an image row are the columns of a matrix (KW C, OW N), which is made once. The
    windows of an output row are KH such matrices, which are one matrix in memory. So a pixel is copied KW times, and
    not KH KW times as by im2col.

    The gradient of the input is a convolution too: of ``dy``, with stride 1, for each
    :class:`~dpcnn.nn.convolution.Phase`.

    In the comments, n is a number of output rows, and K = KH KW C.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: int, padding: int, dilation: int = 1) -> None:
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation

    def memory(self, shape: Shape, output: Shape) -> Memory:
        (H, W, C), (KH, KW), s, p, d = shape, self.kernel_size, self.stride, self.padding, self.dilation
        spacing, (OH, OW, F) = d // gcd(s, d), output
        rows, columns = s * (OH - 1) + extent(KH, d), s * (OW - 1) + extent(KW, d)
        first, end = reach(phases(H, KH, s, p, d), spacing)
        lowered = max(len(right.taps) * right.count for right in phases(W, KW, s, p, d))
        return Memory(
            -(-rows // d) * d * KW * OW * C,
            forward=rows * columns * C if C < LONG_RUN else 0,
            backward=-(-(end - first) // spacing) * spacing * lowered * F,
        )

    def forward(self, x: Array, w: Array, y: Array) -> "Lowered":
        (OH, OW, _, _), (KH, KW), s, p, d = y.shape, self.kernel_size, self.stride, self.padding, self.dilation
        lowered = Lowered(x, (-p, -p), (extent(KH, d) + s * (OH - 1), OW), KW, s, d)
        for rows, windows in lowered.windows(0, s, OH, KH):
            # (n, OW N, K) x (K, F) -> (n, OW N, F)
            np.matmul(windows.swapaxes(1, 2), flat(w), out=y[rows].reshape(len(windows), -1, y.shape[-1]))
        return lowered

    def backward(self, saved: "Lowered", dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        (OH, _, _, F), (KH, _) = dy.shape, self.kernel_size
        total = flat(dw)
        total[...] = 0
        at_once = max(1, SHARES // dw.nbytes)
        for rows, windows in saved.windows(0, self.stride, OH, KH):
            dys = dy[rows].reshape(len(windows), -1, F)
            for first in range(0, len(windows), at_once):
                some = slice(first, first + at_once)
                add_products(windows[some], dys[some], total)
        if dx is not None:
            self._input_gradient(dy, w, dx)

    def _input_gradient(self, dy: Array, w: Array, dx: Array) -> None:
        """Fill ``dx``: a product for some rows of each phase."""
        s, d, p = self.stride, self.dilation, self.padding
        (KH, KW, C, _), spacing = w.shape, d // gcd(s, d)
        down, across = phases(dx.shape[0], KH, s, p, d), phases(dx.shape[1], KW, s, p, d)
        first, end = reach(down, spacing)
        for right in across:
            size = end - first, right.count
            lowered = Lowered(dy, (first, right.first), size, len(right.taps), 1, spacing) if right.taps else None
            for phase in down:
                target = dx[phase.pixels, right.pixels]
                if lowered is None or not phase.taps:
                    target[...] = 0
                    continue
                # (taps, taps, C, F) -> (K, C), with K = taps taps F
                kernel = w[phase.taps][:, right.taps].swapaxes(2, 3).reshape(-1, C)
                for rows, windows in lowered.windows(phase.first - first, 1, phase.count, len(phase.taps)):
                    self._fill(target[rows], windows, kernel)

    def _fill(self, target: Array, windows: Array, kernel: Array) -> None:
        """Fill some rows of pixels (n, W, N, C) with windows (n, K, W N) times a kernel (K, C)."""
        n, W, N, C = target.shape
        at_once = max(1, SHARES // max(1, target.itemsize * W * N * C))
        for lo in range(0, n, at_once):
            some = windows[lo : lo + at_once].swapaxes(1, 2)
            product = np.matmul(some, kernel, out=empty((len(some), W * N, C), target.dtype))
            target[lo : lo + at_once] = product.reshape(-1, W, N, C)


def add_products(windows: Array, dys: Array, total: Array) -> None:
    """Add the gradient of the weights by some rows, windows (n, K, OW N) times dys (n, OW N, F), to ``total``."""
    shares = empty((len(windows), *total.shape), total.dtype)
    total += np.matmul(windows, dys, out=shares).sum(axis=0)


class Lowered:
    """The windows of 1 x KW pixels of an image's rows.

    Rows that are ``dilation`` apart lie one after the other in memory: with few channels, those of a window's pixels
    and channels, as (rows, KW, C, OW, N); with at least :data:`LONG_RUN`, the windows, as (OW, N, rows, KW, C).
    """

    def __init__(
        self, x: Array, origin: tuple[int, int], size: tuple[int, int], width: int, stride: int, dilation: int
    ) -> None:
        """Take the windows of an image (H, W, N, C), which is 0 beyond its border.

        Args:
            origin: row and column of the first pixel of the first window, may be negative.
            size: the number of rows, and of windows in each.
            width: of a window, in pixels that are ``dilation`` apart.
            stride: from a window to the next one.
        """
        (_, _, N, C), (rows, count), d = x.shape, size, dilation
        per_phase = -(-rows // d)
        if C < LONG_RUN:
            memory = empty((d, per_phase, width, C, count, N), x.dtype)
            channels = by_channels(x, origin, (rows, stride * (count - 1) + extent(width, d)))
            for phase in range(min(d, rows)):
                own = channels[phase::d]
                for j in range(width):
                    # (rows, C, count, N)
                    np.copyto(memory[phase, : len(own), j], own[:, :, strided(j * d, count, stride)])
            self.axes = memory
        else:
            memory = empty((d, count, N, per_phase, width, C), x.dtype)
            for row in range(rows):
                copy_windows(x, origin, row, memory[row % d, :, :, row // d], stride, d)
            self.axes = memory.transpose(0, 3, 4, 5, 1, 2)
        self.size = width * C, count * N

    def windows(self, first: int, stride: int, count: int, height: int) -> list[tuple[slice, Array]]:
        """For ``count`` output rows, the windows of ``height`` rows, from row ``first`` on, ``stride`` apart.

        Returns:
            Pairs of some output rows, n of them, and their windows (n, height KW C, OW N), without copies.
        """
        d, found = len(self.axes), []
        _, from_row, _, from_channel, _, from_image = self.axes.strides
        step, (row_size, columns) = d // gcd(stride, d), self.size
        for start in range(min(step, count)):
            rows = slice(start, None, step)
            row, n = first + stride * start, len(range(start, count, step))
            shape = (n, height * row_size, columns)
            strides = (stride * step // d * from_row, from_channel, from_image)
            found.append((rows, as_strided(self.axes[row % d, row // d], shape, strides, writeable=False)))
        return found


def copy_windows(x: Array, origin: tuple[int, int], row: int, out: Array, stride: int, dilation: int) -> None:
    """Fill ``out`` (count, N, KW, C) with the windows of a row, ``stride`` apart; see :class:`Lowered`."""
    (H, W, _, _), (top, left), (count, _, width, _) = x.shape, origin, out.shape
    if not 0 <= top + row < H:
        out[...] = 0
        return
    for j in range(width):
        windows, columns = inside(left + j * dilation, count, W, stride)
        out[: windows.start, :, j], out[windows.stop :, :, j] = 0, 0
        out[windows, :, j] = x[top + row, columns]


def by_channels(x: Array, origin: tuple[int, int], size: tuple[int, int]) -> Array:
    """Some rows and columns of an image, (rows, C, columns, N), zeros beyond its border."""
    (H, W, N, C), (rows, columns), (top, left) = x.shape, size, origin
    planes = x.transpose(0, 3, 1, 2)  # (H, C, W, N)
    if top >= 0 and left >= 0 and top + rows <= H and left + columns <= W and C == 1:
        return planes[top : top + rows, :, left : left + columns]
    image = empty((rows, C, columns, N), x.dtype)
    (down, from_rows), (across, from_columns) = inside(top, rows, H), inside(left, columns, W)
    image[: down.start], image[down.stop :] = 0, 0
    image[down, :, : across.start], image[down, :, across.stop :] = 0, 0
    image[down, :, across] = planes[from_rows, :, from_columns]
    return image
