"""Images that stay in their file and are read on demand."""

import math
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.shards import Images


class Readable(Protocol):
    """An open file that can be read from any place."""

    def read(self, out: memoryview, place: int) -> None:
        """Fill ``out`` with the bytes from ``place`` on."""

    def read_ahead(self, place: int, size: int) -> None:
        """Let the system begin to read ``size`` bytes from ``place`` on."""


class FileImages:
    """Images in a file, one after the other.

    They are not mapped: a file that is shortened meanwhile gives an error, and not a signal that ends the process.

    Attributes:
        shape: (n, H, W, C).
        dtype: of their values.
        file: in which they lie.

    Args:
        file: open for reading.
        place: of the first image's first byte in it.
        shape: (n, H, W, C).
        dtype: of their values.
    """

    def __init__(self, file: Readable, place: int, shape: Shape, dtype: Any = np.uint8) -> None:
        self.file, self.shape, self.dtype, self._place = file, shape, np.dtype(dtype), place
        self.ndim = len(shape)
        self._size = math.prod(shape[1:]) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Array) -> Images:
        """The images (len(indices), H, W, C) of these indices, as a new array.

        All of them are requested before the first is read, so a disk can work on several at a time.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"numbers from {indices.min()} to {indices.max()}, but there are {len(self)} images")
        images = np.empty((len(indices), *self.shape[1:]), self.dtype)
        flat, size = images.reshape(-1).view(np.uint8).data, self._size
        self.read_ahead(indices)
        for start, stop in _runs(indices):
            self.file.read(flat[start * size : stop * size], self._place + int(indices[start]) * size)
        return images

    def read_ahead(self, indices: Array) -> None:
        """Let the system begin to read the images of these indices."""
        for start, stop in _runs(indices):
            self.file.read_ahead(self._place + int(indices[start]) * self._size, (stop - start) * self._size)


def _runs(indices: Array) -> list[tuple[int, int]]:
    """The intervals (start, stop) of ``indices`` in which each number follows the one before: one read for each."""
    bounds = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
    return list(pairwise(bounds)) if len(indices) else []
