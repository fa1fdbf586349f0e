"""The interface of convolution kernels, and what they have in common. Shapes: see layer.py.

A kernel works on a part of the output at a time, some rows or a tile, so that its intermediate results stay in the
processor's cache.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.nn.layer import Memory

BAND = 1 << 21
"""The largest size in bytes of the intermediate results of a band, which is one or more rows of the output."""


class Kernel(Protocol):
    """One way to compute a convolution and its gradients."""

    def forward(self, x: Array, w: Array, y: Array) -> Any:
        """Fill ``y`` (OH, OW, N, F) from ``x`` (H, W, N, C) and ``w`` (KH, KW, C, F).

        Returns:
            What ``backward`` needs of ``x``.
        """

    def memory(self, shape: Shape, output: Shape) -> Memory:
        """About the memory that it needs in training, for inputs (H, W, C) and outputs (OH, OW, F)."""

    def backward(self, saved: Any, dy: Array, w: Array, dw: Array, dx: Array | None) -> None:
        """Fill ``dw`` and, unless it is None, ``dx`` from ``dy`` and what ``forward`` has returned; all contiguous."""


def region(x: Array, origin: tuple[int, int], size: tuple[int, int]) -> Array:
    """Rows and columns of images (H, W, N, C), from ``origin`` on, which may be negative; zeros beyond the border."""
    image = empty((*size, *x.shape[2:]), x.dtype)
    (down, from_rows), (across, from_columns) = map(inside, origin, size, x.shape[:2])
    for border in (image[: down.start], image[down.stop :], image[down, : across.start], image[down, across.stop :]):
        border[...] = 0
    image[down, across] = x[from_rows, from_columns]
    return image


def gathered(part: Array) -> Array:
    """Contiguous (h, v, N, C): the array itself if it is so, or a copy."""
    if part.flags.c_contiguous:
        return part
    copy = empty(part.shape, part.dtype)
    copy[...] = part
    return copy


def pixels(x: Array) -> Array:
    """Contiguous (H, W, ..) with all values of a pixel as one run: (H, W, L)."""
    return x.reshape(*x.shape[:2], -1)


def first(memory: Array, shape: Shape) -> Array:
    """An array in the first elements of ``memory``, which has one axis."""
    return memory[: prod(shape)].reshape(shape)


def flat(y: Array) -> Array:
    """Contiguous (..., F) as a matrix of rows F."""
    return y.reshape(-1, y.shape[-1])


def bands(rows: int, bytes_a_row: int, most: int = 0) -> list[tuple[int, int]]:
    """Intervals of rows, (start, stop), each of at most ``most`` bytes, :data:`BAND` by default, or of one row."""
    step = max(1, (most or BAND) // bytes_a_row)
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


def inside(first: int, count: int, length: int, stride: int = 1) -> tuple[slice, slice]:
    """Those of ``count`` positions that lie in 0 .. length - 1: their numbers, from 0, and the positions themselves.

    Position number k is first + k stride.
    """
    start = min(count, max(0, -(first // stride)))
    stop = min(count, max(start, -((first - length) // stride)))
    position = first + start * stride
    return slice(start, stop), slice(position, position + (stop - start) * stride, stride)


@dataclass(frozen=True)
class Phase:
    """Pixels along one side of the input that are a stride apart: the same positions of the kernel reach all of them.

    Attributes:
        pixels: of the input.
        count: the number of these pixels.
        taps: the positions of the kernel, from the last one to the first one.
        first: the output pixel by which the last position reaches the first of the pixels; may be negative.
    """

    pixels: slice
    count: int
    taps: list[int]
    first: int

    def end(self, spacing: int) -> int:
        """The end of the output pixels that reach these pixels, if one tap's lies ``spacing`` after that before it."""
        return self.first + self.count - 1 + extent(len(self.taps), spacing)


def phases(length: int, kernel_size: int, stride: int, padding: int, dilation: int) -> list[Phase]:
    """The phases of a side of ``length`` pixels."""
    found = []
    for phase in range(min(stride, length)):
        taps = [i for i in reversed(range(kernel_size)) if (i * dilation - phase - padding) % stride == 0]
        first = (phase + padding - taps[0] * dilation) // stride if taps else 0
        found.append(Phase(slice(phase, None, stride), len(range(phase, length, stride)), taps, first))
    return found


def reach(phases: Iterable[Phase], spacing: int) -> tuple[int, int]:
    """The first and the end of the output pixels that reach the pixels of any phase."""
    used = [phase for phase in phases if phase.taps]
    return min((phase.first for phase in used), default=0), max((phase.end(spacing) for phase in used), default=0)
