"""Mean and deviation of the values of each channel, exact and independent of the order of the images."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.data.shards import Images

DIGITS = 1 << 40
"""The parts of 1 to which a deviation is rounded, by whole numbers: a float's square root may depend on the machine."""


class Moments:
    """Sums over images.

    Attributes:
        sums: (3, C) int64: by channel the number of values, their sum, and the sum of their squares.
    """

    def __init__(self, channels: int) -> None:
        self.sums = np.zeros((3, channels), np.int64)

    def counted(self, blocks: Iterable[tuple[Images, Array]]) -> Iterator[tuple[Images, Array]]:
        """The same blocks of images (n, H, W, C) and labels; their values are counted."""
        for images, labels in blocks:
            self.add(images)
            yield images, labels

    def add(self, images: Images) -> None:
        """Count the values of images (n, H, W, C), uint8."""
        rows = images.reshape(len(images), math.prod(images.shape[1:]))
        places = rows.sum(axis=0, dtype=np.int64), np.square(rows, dtype=np.uint16).sum(axis=0, dtype=np.int64)
        channels = self.sums.shape[1]
        self.sums[0] += images.size // channels
        self.sums[1:] += [each.reshape(-1, channels).sum(axis=0) for each in places]

    def mean_and_deviation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """For each channel; the deviation of a channel without variation is 1, so that a division by it is harmless."""
        columns: list[list[Any]] = self.sums.T.tolist()
        deviations = (
            math.isqrt((count * squares - total**2) * DIGITS**2) / (count * DIGITS) for count, total, squares in columns
        )
        return tuple(total / count for count, total, _ in columns), tuple(each or 1.0 for each in deviations)
