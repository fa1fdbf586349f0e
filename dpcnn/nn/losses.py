"""Losses: sums over the batch, never means, so that batches of any size add up.

A loss is a dataclass: its fields are its options. It is chosen by its name in :data:`LOSSES`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.options import check_options, option


@dataclass(frozen=True)
class Loss:
    """The function that training minimises, and the meaning of a network's outputs (N, K).

    Labels are (N,) integers in 0..K-1.

    Raises:
        ConfigError: an option out of its bounds.
    """

    def __post_init__(self) -> None:
        check_options(self)

    def loss(self, outputs: Array, labels: Array) -> Array:
        """The loss of each sample, (N,)."""
        raise NotImplementedError

    def gradient(self, outputs: Array, labels: Array) -> Array:
        """The gradient of the sum of the losses by the outputs, (N, K), contiguous."""
        raise NotImplementedError

    def loss_and_gradient(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        """Both; a loss whose two parts share work computes them together here."""
        return self.loss(outputs, labels), self.gradient(outputs, labels)

    def correct(self, outputs: Array, labels: Array) -> Array:
        """Whether each sample is classified right, (N,) bool."""
        right: Array = outputs.argmax(axis=1) == labels
        return right

    def probabilities(self, outputs: Array) -> Array:
        """The probability of each class, (N, K)."""
        return softmax(outputs)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of softmax(outputs) against smoothed targets.

    The target is 1 - s + s/K at the label and s/K elsewhere, s being ``label_smoothing`` and K the number of classes
    (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).
    """

    label_smoothing: float = option(
        0.01, "label smoothing: fraction of each target spread over all classes", least=0, below=1
    )

    def loss(self, outputs: Array, labels: Array) -> Array:
        return self.loss_and_gradient(outputs, labels)[0]

    def gradient(self, outputs: Array, labels: Array) -> Array:
        return self.loss_and_gradient(outputs, labels)[1]

    def loss_and_gradient(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        (N, K), smoothing = outputs.shape, self.label_smoothing
        at_labels = np.arange(0, N * K, K) + labels  # in the flattened (N, K)
        log_softmax = outputs - np.maximum.reduce(outputs, axis=1, keepdims=True)
        gradient = np.exp(log_softmax)
        totals = np.add.reduce(gradient, axis=1, keepdims=True)
        log_softmax -= np.log(totals)
        losses: Array = -(1 - smoothing) * log_softmax.take(at_labels)
        gradient /= totals
        if smoothing:
            losses -= smoothing / K * np.add.reduce(log_softmax, axis=1)
            gradient -= gradient.dtype.type(smoothing / K)
        gradient.reshape(-1)[at_labels] -= gradient.dtype.type(1 - smoothing)
        return losses, gradient


def softmax(logits: Array) -> Array:
    """The probabilities (N, K) that the logits (N, K) stand for."""
    exponentials: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


LOSSES: dict[str, type[Any]] = {"cross-entropy": CrossEntropy}
"""The losses by name."""
