"""Mean and deviation of the values of each channel, exact and independent of the order of the images."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.data.pixels import STEPS, levels
from dpcnn.data.shards import Images
from dpcnn.parallel.comm import SerialComm

DIGITS = 1 << 40
"""The parts of 1 to which a deviation is rounded, by whole numbers: a float's square root may depend on the machine."""

BLOCK = 1 << 20
"""The values of an array whose sums are computed at once, which bounds the memory for them."""


class Moments:
    """Sums over images, of their values as :func:`dpcnn.data.pixels.levels`.

    Attributes:
        sums: (3, C) integers of Python: by channel the number of values, their sum, and the sum of their squares.

    Args:
        channels: C.
        max_value: the value of white; None: the images are uint8.
    """

    def __init__(self, channels: int, max_value: float | None = None) -> None:
        self.sums = np.zeros((3, channels), object)
        self._max_value = max_value

    def counted(self, blocks: Iterable[tuple[Images, Array]]) -> Iterator[tuple[Images, Array]]:
        """The same blocks of images (n, H, W, C) and labels; their values are counted."""
        for images, labels in blocks:
            self.add(images)
            yield images, labels

    def add(self, images: Images) -> None:
        """Count the values of images (n, H, W, C)."""
        rows = levels(images, self._max_value).reshape(len(images), math.prod(images.shape[1:]))
        wide = np.uint16 if rows.dtype == np.uint8 else np.uint32
        places = rows.sum(axis=0, dtype=np.int64), np.square(rows, dtype=wide).sum(axis=0, dtype=np.int64)
        channels = self.sums.shape[1]
        self.sums[0] += images.size // channels
        self.sums[1:] += np.array([each.reshape(-1, channels).sum(axis=0) for each in places]).astype(object)

    def gather(self, comm: SerialComm) -> None:
        """Add the sums of all ranks on every rank."""
        self.sums = np.sum([np.array(sums, object) for sums in comm.allgather_obj(self.sums.tolist())], axis=0)

    def mean_and_deviation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """For each channel, on the scale of uint8; the deviation of a channel without variation is 1, as a divisor."""
        steps = 1 if self._max_value is None else STEPS
        columns: list[list[Any]] = self.sums.T.tolist()
        deviations = (
            math.isqrt((count * squares - total**2) * DIGITS**2) / (count * DIGITS * steps)
            for count, total, squares in columns
        )
        return tuple(total / (count * steps) for count, total, _ in columns), tuple(each or 1.0 for each in deviations)


def moments_of(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of each channel of images (n, H, W, C), uint8 or float32 of 0..255.

    Those of uint8 are the values of a data set with the same images. Floats are not rounded, unlike those of a data
    set, and can lie beyond 0 and 255.
    """
    rows = max(1, BLOCK // math.prod(images.shape[1:]))
    blocks = [images[start : start + rows] for start in range(0, len(images), rows)]
    if images.dtype == np.uint8:
        moments = Moments(images.shape[-1])
        for block in blocks:
            moments.add(block)
        return moments.mean_and_deviation()
    count, axes = images[..., 0].size, (0, 1, 2)
    first = images[0, 0, 0].astype(np.float64)  # the differences of a channel without variation are exactly 0
    means = first + sum((block - first).sum(axis=axes) for block in blocks) / count
    squares = sum(np.square(block - means).sum(axis=axes) for block in blocks) / count
    return tuple(means.tolist()), tuple(each or 1.0 for each in np.sqrt(squares).tolist())
