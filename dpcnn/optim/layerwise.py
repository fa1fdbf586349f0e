"""Optimizers for large batches: each array of weights has a learning rate of its own, from norms of the whole array.

A step has two passes, as the norms, to which all ranks contribute, come between them: :meth:`Layerwise.direct` writes
the direction of the step over the gradient, and ``update`` takes the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.base.elementary import whole_power
from dpcnn.base.options import option
from dpcnn.optim.optimizer import DECAY, MOST_DECAY, Optimizer


class Layerwise(Optimizer):
    """An optimizer that multiplies the learning rate of each array of weights by :meth:`ratio`.

    Biases and the parameters of a normalisation have the learning rate as it is, as in the implementations of both
    papers.
    """

    def direct(
        self,
        params: Vector,
        grads: Vector,
        state: Mapping[str, Vector],
        step: int,
        scale: float,
        before: Sequence[Vector],
    ) -> None:
        """Write the direction of step number ``step`` over ``grads``; the arguments are those of ``update``."""
        for p, g, arrays in self._blocks(params, grads, state, before):
            self.direct_block(p, g, scale, step, *arrays)

    def direct_block(self, p: Vector, g: Vector, scale: float, step: int, *arrays: Vector) -> None:
        """Write the direction over the gradient ``g``; ``arrays`` are those of ``update_block``."""
        g *= scale

    def ratio(self, weights: float, direction: float) -> float:
        """The factor of the learning rate for an array of weights, from its norm and that of its direction.

        It is 1 if one of the two norms is 0.
        """
        return self.positive_ratio(weights, direction) if weights and direction else 1.0

    def positive_ratio(self, weights: float, direction: float) -> float:
        """:meth:`ratio` for norms above 0."""
        raise NotImplementedError


@dataclass
class LARS(Layerwise):
    """u = momentum * u + lr * ratio * (g + weight_decay * p); p -= u, with the ratio
    trust_coefficient * |p| / (|g| + weight_decay * |p|): You, Gitman and Ginsburg, "Large batch training of
    convolutional networks" (2017), algorithm 1."""

    state_names: ClassVar[tuple[str, ...]] = ("u",)
    momentum: float = option(0.9, "momentum", least=0, below=1)
    weight_decay: float = option(0.0005, DECAY, least=0, most=MOST_DECAY)
    trust_coefficient: float = option(
        0.001,
        "largest change of an array of weights in a step, relative to its norm, for a rate of 1",
        above=0,
        most=1_000,
    )

    def positive_ratio(self, weights: float, direction: float) -> float:
        return self.trust_coefficient * weights / (direction + self.weight_decay * weights)

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        u, a, _ = arrays
        np.multiply(p, self.weight_decay, out=a)
        a += g
        a *= lr
        u *= self.momentum
        u += a
        p -= u


@dataclass
class LAMB(Layerwise):
    """p -= lr * |p| / |d| * d with d = m / (sqrt(v) + epsilon) + weight_decay * p, where m and v are Adam's averages.

    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes" (2020), algorithm 2, with the
    identity as phi.
    """

    state_names: ClassVar[tuple[str, ...]] = ("m", "v")
    beta1: float = option(0.9, "decay of the average of the gradient", least=0, below=1)
    beta2: float = option(0.999, "decay of the average of the squared gradient", least=0, below=1)
    epsilon: float = option(1e-6, "added to the root of the average of the squared gradient", above=0, most=1)
    weight_decay: float = option(0.01, DECAY, least=0, most=MOST_DECAY)

    def positive_ratio(self, weights: float, direction: float) -> float:
        return weights / direction

    def direct_block(self, p: Vector, g: Vector, scale: float, step: int, *arrays: Vector) -> None:
        m, v, a, _ = arrays
        g *= scale
        np.multiply(g, 1 - self.beta1, out=a)
        m *= self.beta1
        m += a
        g *= g
        g *= 1 - self.beta2
        v *= self.beta2
        v += g
        np.multiply(v, 1 / (1 - whole_power(self.beta2, step)), out=a)
        np.sqrt(a, out=a)
        a += self.epsilon
        np.multiply(m, 1 / (1 - whole_power(self.beta1, step)), out=g)
        g /= a
        np.multiply(p, self.weight_decay, out=a)
        g += a

    def update_block(self, p: Vector, g: Vector, scale: float, step: int, lr: float, *arrays: Vector) -> None:
        *_, a, _ = arrays
        np.multiply(g, lr, out=a)
        p -= a
