"""Optimizers over flat vectors.

Every optimizer is elementwise: each element's update depends on that element alone. So any rank
may update any slice of the vector, with the bits that a rank alone would get.
"""

from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import zeros
from dpcnn.base.elementary import whole_power

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

    def update(self, params: Vector, gradient: Vector, step: int, lr: float, scale: float = 1.0) -> None:
        """Take step number ``step`` (counted from 1) with learning rate ``lr``.

        Args:
            params: (size,), changed in place.
            gradient: (size,), left as it is.
            scale: times which the gradient is meant: 1 / count, where it is a sum over samples.
        """
        for start in range(0, len(params), UPDATE_BLOCK):
            block = slice(start, start + UPDATE_BLOCK)
            p = params[block]
            states = [array[block] for array in self.state.values()]
            self._update(p, gradient[block], scale, step, lr, *states, *self._scratch[:, : len(p)])

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        raise NotImplementedError


class Adam(Optimizer):
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.

    With the bias corrections folded into two scalars, as in the paper's section 2.
    """

    state_names = ("m", "v")
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        m, v, a, b = arrays
        correction = sqrt(1 - whole_power(self.beta2, step))
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
        a *= lr * correction / (1 - whole_power(self.beta1, step))
        p -= a


class AdamW(Adam):
    """Adam, and p -= rate * decay * p beside it: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019),
    algorithm 2."""

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        p *= 1 - lr * self.weight_decay
        super()._update(p, g, scale, step, lr, *arrays)


class SGD(Optimizer):
    """p -= rate * g."""

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        a, _ = arrays
        np.multiply(g, scale * lr, out=a)
        p -= a


class Momentum(Optimizer):
    """u = momentum * u + g; p -= rate * u (Polyak, 1964)."""

    state_names = ("u",)

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, _ = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, lr, out=a)
        p -= a


class Nesterov(Optimizer):
    """u = momentum * u + g; p -= rate * (g + momentum * u): Sutskever et al., "On the importance of initialization
    and momentum in deep learning" (2013), eq. 3 and 4, written for the point where the gradient is taken."""

    state_names = ("u",)

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, b = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, self.momentum, out=b)
        a += b
        a *= lr
        p -= a


class AdaGrad(Optimizer):
    """h += g^2; p -= rate * g / (sqrt(h) + epsilon): Duchi, Hazan and Singer, "Adaptive subgradient methods for
    online learning and stochastic optimization" (2011), with a diagonal matrix."""

    state_names = ("h",)
    epsilon = 1e-7

    def _update(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
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
