"""The exponential moving average of the weights."""

from dpcnn.base.arrays import Vector
from dpcnn.optim.optimizer import UPDATE_BLOCK


def update_average(ema: Vector, params: Vector, step: int, decay: float) -> None:
    """Move the average in place towards ``params``, in step number ``step``, counted from 1.

    The average keeps the fraction ``decay`` of itself, but at most (1 + step) / (4 + step), so that it soon forgets the
    initial values: then the weights after step s count in proportion to about s^2.
    """
    weight = 1 - min(decay, (1 + step) / (4 + step))
    for start in range(0, len(params), UPDATE_BLOCK):
        block = slice(start, start + UPDATE_BLOCK)
        change = params[block] - ema[block]
        change *= weight
        ema[block] += change
