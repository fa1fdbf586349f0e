"""Optimizers over flat vectors.

Every optimizer is elementwise: each element's update depends on that element alone. So any rank
may update any slice of the parameters, with the bits that one rank would get.

An optimizer is a dataclass: its fields are its options. It is chosen by its name in :data:`OPTIMIZERS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from dpcnn.base.arrays import Vector, Workspace, zeros
from dpcnn.base.elementary import whole_power
from dpcnn.base.options import check_options, option

UPDATE_BLOCK = 32_768
"""Elements updated at a time, so that an optimizer's passes run in the cache."""


@dataclass
class Optimizer:
    """Updates parameters in place from their gradient, a block at a time.

    Attributes:
        state_names: the names of the arrays that the optimizer remembers from step to step.

    Raises:
        ConfigError: an option out of its bounds.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self)
        self._workspace = Workspace()

    def zeros(self, size: int, dtype: Any = np.float32) -> dict[str, Vector]:
        """The state before the first step: arrays (size,) of zeros, by name."""
        return {name: zeros((size,), dtype) for name in self.state_names}

    def update(
        self,
        params: Vector,
        grads: Vector,
        state: Mapping[str, Vector],
        step: int,
        lr: float,
        scale: float = 1.0,
        before: Sequence[Vector] = (),
    ) -> None:
        """Take step number ``step`` (counted from 1) with the learning rate ``lr``.

        Args:
            params: (size,), changed in place.
            grads: (size,), left as it is; to be multiplied by ``scale``: 1 / count for a sum over samples.
            state: (size,) arrays by the names of ``state_names``, changed in place.
            before: the parameters and the arrays of the state before the step, (size,) each, if they are not yet in
                ``params`` and ``state``: they are copied there first, block by block.
        """
        scratch = self._workspace.array("scratch", (2, min(len(params), UPDATE_BLOCK)), params.dtype)
        for start in range(0, len(params), UPDATE_BLOCK):
            block = slice(start, start + UPDATE_BLOCK)
            p = params[block]
            states = [state[name][block] for name in self.state_names]
            for after, array in zip([p, *states], before, strict=False):
                after[...] = array[block]
            self.update_block(p, grads[block], scale, step, lr, *states, *scratch[:, : len(p)])

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        """Update some elements ``p`` in place.

        Args:
            g: their gradient, left as it is; to be multiplied by ``scale``.
            arrays: the elements of each state array, changed in place; then two arrays of scratch space.
        """
        raise NotImplementedError


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

    weight_decay: float = option(0.01, "weight decay", least=0, most=1e6)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        p *= 1 - lr * self.weight_decay
        super().update_block(p, g, scale, step, lr, *arrays)


@dataclass
class SGD(Optimizer):
    """p -= lr * g."""

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        a, _ = arrays
        np.multiply(g, scale * lr, out=a)
        p -= a


@dataclass
class Momentum(Optimizer):
    """u = momentum * u + g; p -= lr * u (Polyak, 1964)."""

    state_names: ClassVar[tuple[str, ...]] = ("u",)
    momentum: float = option(0.9, "momentum", least=0, below=1)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, _ = arrays
        np.multiply(g, scale, out=a)
        u *= self.momentum
        u += a
        np.multiply(u, lr, out=a)
        p -= a


@dataclass
class Nesterov(Optimizer):
    """u = momentum * u + g; p -= lr * (g + momentum * u): Sutskever et al., "On the importance of initialization
    and momentum in deep learning" (2013), eq. 3 and 4, written for the point where the gradient is taken."""

    momentum: float = option(0.9, "momentum", least=0, below=1)
    state_names: ClassVar[tuple[str, ...]] = ("u",)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, b = arrays
        np.multiply(g, scale, out=a)
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
}
"""The optimizers by name."""
