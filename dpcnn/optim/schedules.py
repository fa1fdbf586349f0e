"""Learning-rate schedules: the factor on the learning rate, as a function of the epochs that have passed.

Args of each: ``progress``, in epochs; ``epochs``, of the whole run; ``decay``, of the option ``--gamma``.
"""

import math
from collections.abc import Callable

import numpy as np

from dpcnn.base import elementary


def constant(progress: float, epochs: int, decay: float) -> float:
    """Always 1."""
    return 1.0


def step(progress: float, epochs: int, decay: float) -> float:
    """Times ``decay`` at half of the run, and again at three quarters (He et al., "Deep residual learning", 2016,
    section 4.2)."""
    return elementary.whole_power(decay, (progress >= epochs / 2) + (progress >= 0.75 * epochs))


def one_cycle(progress: float, epochs: int, decay: float) -> float:
    """Up from 1/25 to 1 in 0.3 of the run, then down to 1/250,000, along half cosines.

    Smith and Topin, "Super-convergence" (2018), with the shape that has become usual.
    """
    part, peak = progress / epochs, 0.3
    low, high, place = (1 / 25, 1.0, part / peak) if part < peak else (4e-6, 1.0, (1 - part) / (1 - peak))
    return low + (high - low) * 0.5 * (1 - float(elementary.cos(np.pi * place)))


def exponential(progress: float, epochs: int, decay: float) -> float:
    """Times ``decay`` after each epoch."""
    try:
        return elementary.whole_power(decay, int(progress))
    except OverflowError:
        return math.inf


def cosine(progress: float, epochs: int, decay: float) -> float:
    """Half a cosine from 1 to 0 over the run (Loshchilov and Hutter, 2017, eq. 5, one cycle)."""
    return 0.5 * (1 + float(elementary.cos(np.pi * progress / epochs)))


PLATEAU = "plateau"
"""The schedule whose rate is constant, times ``decay`` whenever validation has stopped to improve.

See :func:`dpcnn.training.plateau.plateaus`: it depends on the results of the run, not on its progress alone.
"""

Schedule = Callable[[float, int, float], float]
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "exponential": exponential,
    "step": step,
    "cosine": cosine,
    "one-cycle": one_cycle,
    PLATEAU: constant,
}
OVER_ALL_EPOCHS = {"step", "cosine", "one-cycle"}
"""Schedules that depend on how many epochs the run has, from the first step on."""
