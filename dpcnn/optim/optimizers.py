"""The optimizers. One is chosen by its name in :data:`OPTIMIZERS`.

The weight decay of SGD with or without momentum is that of the loss, weight_decay / 2 * |p|^2; its gradient is added
to the gradient. That of :class:`AdamW` is apart from the gradient.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.base.elementary import whole_power
from dpcnn.base.options import option
from dpcnn.optim.layerwise import LAMB, LARS
from dpcnn.optim.optimizer import DECAY, MOST_DECAY, Optimizer


@dataclass
class Adam(Optimizer):
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.

    With the bias corrections folded into two scalars, as in the paper's section 2.
    """

    state_names: ClassVar[tuple[str, ...]] = ("m", "v")
    beta1: float = option(0.9, "decay of the average of the gradient", least=0, below=1)
    beta2: float = option(0.999, "decay of the average of the squared gradient", least=0, below=1)
    epsilon: float = option(1e-8, "added to the root of the average of the squared gradient", above=0, most=1)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        m, v, a, b = arrays
        correction = sqrt(1 - whole_power(self.beta2, step))
        np.multiply(g, scale * (1 - self.beta1), out=a)
        m *= self.beta1
        m += a
        a *= a
        a *= (1 - self.beta2) / whole_power(1 - self.beta1, 2)
        v *= self.beta2
        v += a
        np.sqrt(v, out=b)
        b += self.epsilon * correction
        np.divide(m, b, out=a)
        a *= lr * correction / (1 - whole_power(self.beta1, step))
        p -= a


@dataclass
class AdamW(Adam):
    """Adam, and p -= lr * decay * p beside it: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019),
    algorithm 2."""

    weight_decay: float = option(0.01, DECAY, least=0, most=MOST_DECAY)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        p *= 1 - lr * self.weight_decay
        super().update_block(p, g, scale, step, lr, *arrays)


@dataclass
class SGD(Optimizer):
    """p -= lr * (g + weight_decay * p)."""

    weight_decay: float = option(0.0, DECAY, least=0, most=MOST_DECAY)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        a, b = arrays
        if self.weight_decay:
            np.multiply(p, lr * self.weight_decay, out=b)
            p -= b
        np.multiply(g, scale * lr, out=a)
        p -= a


@dataclass
class Momentum(Optimizer):
    """u = momentum * u + g + weight_decay * p; p -= lr * u (Polyak, 1964)."""

    state_names: ClassVar[tuple[str, ...]] = ("u",)
    momentum: float = option(0.9, "momentum", least=0, below=1)
    weight_decay: float = option(0.0, DECAY, least=0, most=MOST_DECAY)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, b = arrays
        np.multiply(g, scale, out=a)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=b)
            a += b
        u *= self.momentum
        u += a
        np.multiply(u, lr, out=a)
        p -= a


@dataclass
class Nesterov(Momentum):
    """As :class:`Momentum`, but p -= lr * (g + weight_decay * p + momentum * u): Sutskever et al., "On the importance
    of initialization and momentum in deep learning" (2013), eq. 3 and 4, written for the point where the gradient is
    taken."""

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, b = arrays
        np.multiply(g, scale, out=a)
        if self.weight_decay:
            np.multiply(p, self.weight_decay, out=b)
            a += b
        u *= self.momentum
        u += a
        np.multiply(u, self.momentum, out=b)
        a += b
        a *= lr
        p -= a


@dataclass
class AdaGrad(Optimizer):
    """h += g^2; p -= lr * g / (sqrt(h) + epsilon): Duchi, Hazan and Singer, "Adaptive subgradient methods for
    online learning and stochastic optimization" (2011), with a diagonal matrix."""

    state_names: ClassVar[tuple[str, ...]] = ("h",)
    epsilon: float = option(1e-7, "added to the root of the summed squares", above=0, most=1)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        h, a, b = arrays
        np.multiply(g, scale, out=a)
        np.multiply(a, a, out=b)
        self._accumulate(h, b)
        np.sqrt(h, out=b)
        b += self.epsilon
        a /= b
        a *= lr
        p -= a

    def _accumulate(self, h: Vector, squares: Vector) -> None:
        h += squares


@dataclass
class RMSProp(AdaGrad):
    """h = 0.99 h + 0.01 g^2, else as AdaGrad: Tieleman and Hinton, "Neural networks for machine learning" (2012),
    lecture 6.5."""

    decay: float = option(0.99, "decay of the average of the squared gradient", least=0, below=1)
    epsilon: float = option(1e-8, "added to the root of the average of the squared gradient", above=0, most=1)

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
    "lars": LARS,
    "lamb": LAMB,
}
"""The optimizers by name."""
