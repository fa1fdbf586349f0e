"""Memory that is reused, at addresses that suit the processor's cache."""

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
    memory = np.zeros(size + PAGE, np.uint8)
    start = (17 * CACHE_LINE * next(_arrays) - memory.ctypes.data) % PAGE  # 17: all 64 lines of a page in turn
    array: Array = memory[start : start + size].view(dtype).reshape(shape)
    return array


class Workspace:
    """Arrays that are reused at every call: new memory costs page faults."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, key: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An uninitialised array, in the memory of the last call with this key."""
        size = prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[key] = zeros((size,), dtype)
        return buffer[:size].reshape(shape)
