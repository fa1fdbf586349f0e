"""Memory that is reused, at addresses that suit the processor's cache."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any shape and number type."""

Vector = NDArray[np.float32]
"""A flat float32 array (size,): parameters, a gradient, or state of an optimizer."""

Shape = tuple[int, ...]

CACHE_LINE, PAGE = 64, 4096  # bytes

_arrays = count()


def zeros(shape: Shape, dtype: Any) -> Array:
    """A contiguous array of zeros that starts at a cache line, at another offset in its page than the last ones.

    ``np.zeros`` starts large arrays 16 bytes after a page: then each 64 bytes that the processor loads
    lie in two lines, and elements with the same index in several arrays compete for the same few sets of the cache.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    array: Array = _staggered(np.zeros(size + PAGE, np.uint8)).view(dtype).reshape(shape)
    return array


def _staggered(memory: Array) -> Array:
    """All bytes of ``memory`` but a page, from a cache line on at another offset in its page than the last ones."""
    start = (17 * CACHE_LINE * next(_arrays) - memory.ctypes.data) % PAGE  # 17: all 64 lines of a page in turn
    return memory[start : start + len(memory) - PAGE]


def all_finite(vector: Vector) -> bool:
    """Whether all elements are finite; unlike a check of their sum, with one answer for any division among ranks."""
    return not len(vector) or bool(np.isfinite([vector.min(), vector.max()]).all())


LONG = 2048
"""Elements of a row that NumPy's operations with one row for all reach about their full speed with."""


def row_length(shape: Shape) -> int:
    """The length of the rows of (.., N, C), each some pixels of the whole batch: at least :data:`LONG`, if possible."""
    *pixel, N, C = shape
    count = prod(pixel)
    return N * C * next(k for k in range(1, count + 1) if count % k == 0 and (k * N * C >= LONG or k == count))


UFUNC_BUFFER = 512
"""Elements that NumPy works on at a time where an array is not contiguous.

NumPy copies shorter rows before and after each operation, which takes three times as long. Its default is 8192;
the pixels of a batch have fewer.
"""


@contextmanager
def ufunc_buffer(size: int) -> Iterator[None]:
    """A block in which NumPy's buffer has ``size`` elements."""
    before = np.setbufsize(size)
    try:
        yield
    finally:
        np.setbufsize(before)


MASKED = 2048
"""Elements of a mask that NumPy converts to numbers at a time."""


def masked(values: Array, mask: Array, out: Array) -> Array:
    """``values`` where ``mask`` (bool) is true, and 0 elsewhere: fills ``out``, which may be ``values``."""
    with ufunc_buffer(MASKED):
        return np.multiply(values, mask, out=out)


def bytes_of(array: Array) -> memoryview:
    """The bytes of an array, one after the other, in its order of elements; a copy only if it is not contiguous."""
    return np.ascontiguousarray(array).data.cast("B")


SPARE = 4
"""The largest ratio of memory size to array size. A step needs its largest arrays at its start and its end only;
others may use their memory in between."""


CHUNK = 1 << 24
"""The bytes that are taken from the system at a time, unless an array is larger. NumPy asks for large pages for
allocations of 4 MB and more; with small ones, the processor spends several per cent of a step on finding pages."""


class _Blocks(threading.local):
    """The memory blocks of :func:`empty` in a thread: by size, the most recently used block first."""

    def __init__(self) -> None:
        self.of_size: dict[int, list[Array]] = {}
        self.rest = memoryview(b"")

    def new(self, size: int) -> Array:
        """A block from the rest of a chunk, or from a new one."""
        if len(self.rest) < size + PAGE:
            self.rest = np.zeros(max(CHUNK, size + PAGE), np.uint8).data
        memory, self.rest = self.rest[: size + PAGE], self.rest[size + PAGE :]
        return _staggered(np.frombuffer(memory, np.uint8))


_blocks = _Blocks()


def empty(shape: Shape, dtype: Any) -> Array:
    """An uninitialised contiguous array, which reuses the memory of an earlier array if possible.

    New memory costs page faults. The memory of an array is free as soon as nothing refers to the array or a view of it,
    so its lifetime is that of any Python object. An array may take memory of up to :data:`SPARE` times its size.
    """
    size = _block_size(shape, dtype)
    block = _unused(size)
    if block is None:
        larger = (_unused(other) for other in sorted(_blocks.of_size) if size < other <= SPARE * size)
        block = next((found for found in larger if found is not None), None)
    if block is None:
        block = _blocks.new(size)
        _blocks.of_size.setdefault(size, []).insert(0, block)
    return np.ndarray(shape, dtype, block)


def _unused(size: int) -> Array | None:
    """The first block of this size to which nothing refers, moved to the front; None: there is none."""
    blocks = _blocks.of_size.get(size, [])
    for place, block in enumerate(blocks):
        if sys.getrefcount(block.base) == _UNUSED:
            blocks.insert(0, blocks.pop(place))
            return block
    return None


@cache
def _block_size(shape: Shape, dtype: Any) -> int:
    """The bytes of an array, rounded up by at most a 32nd, so that arrays of similar sizes share memory."""
    size: int = max(prod(shape) * np.dtype(dtype).itemsize, CACHE_LINE)
    step = 1 << (size.bit_length() - 6)
    return -(-size // step) * step


_BLOCK = zeros((1,), np.uint8)
_UNUSED = sys.getrefcount(_BLOCK.base)
"""The number of references to a block's memory when only the block itself refers to it."""
