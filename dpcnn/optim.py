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

    def __init__(self, size: int, dtype: Any = np.float32, momentum: float = 0.9, weight_decay: float = 0.01) -> None:
        self.momentum, self.weight_decay = momentum, weight_decay
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


class AdamW(Adam):
    """Adam, and p -= rate * decay * p beside it: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019),
    algorithm 2."""

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        p *= 1 - rate * self.weight_decay
        super()._update(p, g, scale, step, rate, *arrays)


class SGD(Optimizer):
    """p -= rate * g."""

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        a, _ = arrays
        np.multiply(g, scale * rate, out=a)
        p -= a


class Momentum(Optimizer):
    """u = momentum * u + g; p -= rate * u (Polyak, 1964)."""

    state_names = ("u",)

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        u, a, _ = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, rate, out=a)
        p -= a


class Nesterov(Optimizer):
    """u = momentum * u + g; p -= rate * (g + momentum * u): Sutskever et al., "On the importance of initialization
    and momentum in deep learning" (2013), eq. 3 and 4, written for the point where the gradient is taken."""

    state_names = ("u",)

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        u, a, b = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, self.momentum, out=b)
        a += b
        a *= rate
        p -= a


class AdaGrad(Optimizer):
    """h += g^2; p -= rate * g / (sqrt(h) + epsilon): Duchi, Hazan and Singer, "Adaptive subgradient methods for
    online learning and stochastic optimization" (2011), with a diagonal matrix."""

    state_names = ("h",)
    epsilon = 1e-7

    def _update(self, p: Vector, g: Vector, scale: float, step: int, rate: float, *arrays: Vector) -> None:
        h, a, b = arrays
        np.multiply(g, scale, out=a)
        np.multiply(a, a, out=b)
        self._accumulate(h, b)
        np.sqrt(h, out=b)
        b += self.epsilon
        a /= b
        a *= rate
        p -= a

    def _accumulate(self, h: Vector, squares: Vector) -> None:
        h += squares


class RMSProp(AdaGrad):
    """h = 0.99 h + 0.01 g^2, else as AdaGrad: Tieleman and Hinton, "Neural networks for machine learning" (2012),
    lecture 6.5."""

    decay, epsilon = 0.99, 1e-8

    def _accumulate(self, h: Vector, squares: Vector) -> None:
        h *= self.decay
        squares *= 1 - self.decay
        h += squares


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": Adam,
    "adamw": AdamW,
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": AdaGrad,
    "rmsprop": RMSProp,
}


def constant(progress: float, epochs: int, decay: float) -> float:
    """Always 1."""
    return 1.0


def step(progress: float, epochs: int, decay: float) -> float:
    """Times ``decay`` at half of the run, and again at three quarters (He et al., "Deep residual learning", 2016,
    section 4.2)."""
    return decay ** ((progress >= epochs / 2) + (progress >= 0.75 * epochs))


def one_cycle(progress: float, epochs: int, decay: float) -> float:
    """Up from 1/25 to 1 in 0.3 of the run, then down to 1/250,000, along half cosines.

    Smith and Topin, "Super-convergence" (2018), with the shape that has become usual.
    """
    part, peak = progress / epochs, 0.3
    low, high, place = (1 / 25, 1.0, part / peak) if part < peak else (4e-6, 1.0, (1 - part) / (1 - peak))
    return low + (high - low) * 0.5 * (1 - float(np.cos(np.pi * place)))


def exponential(progress: float, epochs: int, decay: float) -> float:
    """Times ``decay`` after each epoch."""
    return decay ** int(progress)


def cosine(progress: float, epochs: int, decay: float) -> float:
    """Half a cosine from 1 to 0 over the run (Loshchilov and Hutter, 2017, eq. 5, one cycle)."""
    return 0.5 * (1 + float(np.cos(np.pi * progress / epochs)))


def squares(vector: Vector, block: int) -> NDArray[np.float64]:
    """The sum of squares of each block of so many elements; the last may be shorter."""
    whole = len(vector) // block * block
    rows, rest = vector[:whole].reshape(-1, block), vector[whole:]
    return np.array([*np.vecdot(rows, rows), *([np.vecdot(rest, rest)] if len(rest) else [])], np.float64)


def average(running: Vector, vector: Vector, step: int, keep: float) -> None:
    """Move a running average in place towards ``vector``, of which step number ``step`` (from 1) keeps a part.

    That part is ``keep``, but no more than (1 + step) / (10 + step): so the first values are soon forgotten.
    """
    weight = 1 - min(keep, (1 + step) / (10 + step))
    for start in range(0, len(vector), UPDATE_BLOCK):
        block = slice(start, start + UPDATE_BLOCK)
        change = vector[block] - running[block]
        change *= weight
        running[block] += change


Schedule = Callable[[float, int, float], float]
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "exponential": exponential,
    "step": step,
    "cosine": cosine,
    "one-cycle": one_cycle,
}
OVER_ALL_EPOCHS = {"step", "cosine", "one-cycle"}
"""Schedules that depend on how many epochs the run has, from the first step on."""
