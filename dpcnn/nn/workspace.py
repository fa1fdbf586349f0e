"""Memory that layers use again and again."""

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]


class Workspace:
    """Arrays that are used again at every call: fresh memory costs page faults."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, key: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An array of uninitialised values; its memory is that of the last call with this key."""
        size = prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[key] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)
