"""Optimizers over flat vectors, and learning-rate schedules.

Every optimizer is elementwise: each element's update depends on that element alone. So any rank
may update any slice of the vector, with the bits that a rank alone would get.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.memory import zeros

Vector = NDArray[Any]

UPDATE_BLOCK = 32_768
"""Elements updated at a time, so that an optimizer's passes run in the cache."""


class Optimizer:
    """Updates ``size`` parameters in place from their gradient, a block at a time.

    Attributes:
        state: the optimizer's memory, by name: arrays of ``size`` elements, to be saved and restored.
    """

    state_names: tuple[str, ...] = ()

    def __init__(self, size: int, dtype: Any = np.float32) -> None:
        self.state: dict[str, Vector] = {name: zeros((size,), dtype) for name in self.state_names}
        self._scratch = zeros((2, min(size, UPDATE_BLOCK)), dtype)

    def update(self, parameters: Vector, gradient: Vector, step: int, rate: float, scale: float = 1.0) -> None:
        """Take step number ``step`` (counted from 1) with learning rate ``rate``.

        Args:
            parameters: (size,), changed in place.
            gradient: (size,), left as it is.
            scale: times which the gradient is meant: 1 / count, where it is a sum over samples.
        """
        for start in range(0, len(parameters), UPDATE_BLOCK):
            block = slice(start, start + UPDATE_BLOCK)
            p = parameters[block]
            states = [array[block] for array in self.state.values()]
            self._update(p, gradient[block], scale, step, rate, *states, *self._scratch[:, : len(p)])

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        raise NotImplementedError


class Adam(Optimizer):
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.

    With the bias corrections folded into two scalars, as in the paper's section 2.
    """

    state_names = ("m", "v")
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        m, v, a, b = arrays
        correction = (1 - self.beta2**step) ** 0.5
        np.multiply(g, scale * (1 - self.beta1), out=a)
        m *= self.beta1
        m += a
        a *= a
        a *= (1 - self.beta2) / (1 - self.beta1) ** 2
        v *= self.beta2
        v += a
        np.sqrt(v, out=b)
        b += self.epsilon * correction
        np.divide(m, b, out=a)
        a *= rate * correction / (1 - self.beta1**step)
        p -= a


class SGD(Optimizer):
    """Gradient descent with momentum 0.9: u = 0.9 u + g; p -= rate u (Polyak, 1964)."""

    state_names = ("u",)
    momentum = 0.9

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        u, a, _ = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, rate, out=a)
        p -= a


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": SGD}


def exponential(progress: float, epochs: int, decay: float) -> float:
    """Times ``decay`` after each epoch."""
    return decay ** int(progress)


def cosine(progress: float, epochs: int, decay: float) -> float:
    """Half a cosine from 1 to 0 over the run (Loshchilov and Hutter, 2017, eq. 5, one cycle)."""
    return 0.5 * (1 + float(np.cos(np.pi * progress / epochs)))


Schedule = Callable[[float, int, float], float]
SCHEDULES: dict[str, Schedule] = {"exponential": exponential, "cosine": cosine}
