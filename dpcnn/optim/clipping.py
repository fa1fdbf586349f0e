"""Clipping of the gradient by its norm, with the same bits on any number of ranks."""

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Vector


def squares(vector: Vector, block: int, start: int = 0) -> NDArray[np.float64]:
    """The sum of squares of each block of ``block`` elements; the first and the last may be shorter.

    Args:
        start: the number of the first element of ``vector``; a block begins at each multiple of ``block``.
    """
    first, others = np.split(vector, [-start % block])
    rows, last = np.split(others, [len(others) // block * block])
    rows = rows.reshape(-1, block)
    shorter = [[np.vecdot(part, part)] if len(part) else [] for part in (first, last)]
    return np.array([*shorter[0], *np.vecdot(rows, rows), *shorter[1]], np.float64)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """The factor for a gradient of this norm, so that its norm is at most ``max_norm``; 0: no limit.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013), algorithm 1.
    """
    return max_norm / norm if max_norm and norm > max_norm else 1.0
