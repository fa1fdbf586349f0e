"""A running average of the weights."""

from typing import Any

from numpy.typing import NDArray

from dpcnn.optim.optimizers import UPDATE_BLOCK

Vector = NDArray[Any]


def update_average(running: Vector, params: Vector, step: int, keep: float) -> None:
    """Move a running average in place towards ``params``, of which step number ``step`` (from 1) keeps a part.

    That part is ``keep``, but no more than (1 + step) / (10 + step): so the first values are soon forgotten.
    """
    weight = 1 - min(keep, (1 + step) / (10 + step))
    for start in range(0, len(params), UPDATE_BLOCK):
        block = slice(start, start + UPDATE_BLOCK)
        change = params[block] - running[block]
        change *= weight
        running[block] += change
