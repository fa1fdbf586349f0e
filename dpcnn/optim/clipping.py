"""Clipping of the gradient by its norm, with the same bits on any number of ranks."""

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Vector


def squares(vector: Vector, block: int) -> NDArray[np.float64]:
    """The sum of squares of each block of ``block`` elements; the last block may be shorter."""
    whole = len(vector) // block * block
    rows, rest = vector[:whole].reshape(-1, block), vector[whole:]
    return np.array([*np.vecdot(rows, rows), *([np.vecdot(rest, rest)] if len(rest) else [])], np.float64)


def clip_coefficient(norm: float, max_norm: float) -> float:
    """The factor for a gradient of this norm, so that its norm is at most ``max_norm``; 0: no limit.

    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013), algorithm 1.
    """
    return max_norm / norm if max_norm and norm > max_norm else 1.0
