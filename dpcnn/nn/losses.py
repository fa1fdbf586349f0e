"""Losses: sums over the batch, never means, so that batches of any size add up.

A loss is a dataclass: its fields are its options. It is chosen by its name in :data:`LOSSES`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.options import check_options, option
from dpcnn.errors import ConfigError

CLASSES, MULTILABEL, VALUES = "classes", "multilabel", "values"
TARGETS = {
    CLASSES: "one class per sample",
    MULTILABEL: "several labels per sample",
    VALUES: "values",
}
"""The kinds of targets of a data set, each with a description.

classes: (n,) integers in 0..K-1. multilabel: (n, K) zeros and ones. values: (n, K) floats.
"""


@dataclass(frozen=True)
class Loss:
    """The function that training minimises, and the meaning of a network's outputs (N, K).

    Attributes:
        targets: the kind of the labels, one of :data:`TARGETS`. In this class: (N,) integers in 0..K-1.
        metrics: names in :data:`dpcnn.nn.metrics.METRICS` for each evaluation, the most important one first.

    Raises:
        ConfigError: an option out of its bounds.
    """

    targets: ClassVar[str] = CLASSES
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "loss", "top5", "precision", "recall", "f1")

    def __post_init__(self) -> None:
        check_options(self)

    def check_data(self, targets: str, classes: int, name: str) -> None:
        """Check that this loss is for the targets of a data set.

        Args:
            targets: one of :data:`TARGETS`.
            classes: the number of classes, labels or values.
            name: of the data set.

        Raises:
            ConfigError: it is for other targets.
        """
        if targets != self.targets:
            fitting = [loss for loss, kind in LOSSES.items() if kind.targets == targets]
            raise ConfigError(
                f"--loss: this loss is for {TARGETS[self.targets]}, but the data set {name} has {TARGETS[targets]}; "
                f"give another data set, or train with --loss {' or '.join(fitting)}"
            )

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

    def predicted(self, outputs: Array) -> Array:
        """The prediction for each sample, as the labels are: here the class with the highest output, (N,)."""
        best: Array = outputs.argmax(axis=1)
        return best

    def places(self, outputs: Array, labels: Array) -> Array:
        """How many classes have a higher output than the true one, (N,) integers; of equal outputs the first counts."""
        own, before = outputs[np.arange(len(labels)), labels][:, None], np.arange(outputs.shape[1]) < labels[:, None]
        places: Array = ((outputs > own) | ((outputs == own) & before)).sum(axis=1)
        return places

    def probabilities(self, outputs: Array) -> Array:
        """The probability of each class, (N, K)."""
        return softmax(outputs)

    def answer(self, probabilities: Array) -> dict[str, Any]:
        """The prediction for a sample, ready for JSON, from its row (K,) of :meth:`probabilities`."""
        return {"class": int(probabilities.argmax()), "probabilities": probabilities.tolist()}


@dataclass(frozen=True)
class Joint(Loss):
    """A loss that computes its values and its gradient together: override ``loss_and_gradient``."""

    def loss(self, outputs: Array, labels: Array) -> Array:
        return self.loss_and_gradient(outputs, labels)[0]

    def gradient(self, outputs: Array, labels: Array) -> Array:
        return self.loss_and_gradient(outputs, labels)[1]


@dataclass(frozen=True)
class CrossEntropy(Joint):
    """Cross-entropy of softmax(outputs) against smoothed targets.

    The target is 1 - s + s/K at the label and s/K elsewhere, s being ``label_smoothing`` and K the number of classes
    (Szegedy et al., "Rethinking the Inception architecture", 2016, section 7).

    With ``class_weights``, each term of the sum over the classes has the weight of its class. The losses are not
    divided by the weights of the samples: this is PyTorch's ``cross_entropy(.., weight=.., reduction="sum")``.
    """

    label_smoothing: float = option(
        0.01, "label smoothing: fraction of each target spread over all classes", least=0, below=1
    )
    class_weights: tuple[float, ...] = option(
        (), "the weight of each class in the loss, in the order of the classes", least=0, most=1e6, later=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_weights and not any(self.class_weights):
            raise ConfigError("--class-weights: all are 0, so nothing would be learned; give a weight above 0")

    def check_data(self, targets: str, classes: int, name: str) -> None:
        super().check_data(targets, classes, name)
        if self.class_weights and len(self.class_weights) != classes:
            raise ConfigError(
                f"--class-weights: expected {classes} weights, one for each class of {name}, "
                f"not {len(self.class_weights)}"
            )

    def loss_and_gradient(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        if self.class_weights:
            return self._weighted(outputs, labels)
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

    def _weighted(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        """With t the targets times the weights, the loss -sum(t * log p), and its gradient sum(t) * p - t."""
        (N, K), weights = outputs.shape, np.asarray(self.class_weights, outputs.dtype)
        targets = np.tile(weights * outputs.dtype.type(self.label_smoothing / K), (N, 1))
        targets[np.arange(N), labels] += weights[labels] * outputs.dtype.type(1 - self.label_smoothing)
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        losses: Array = -(targets * log_softmax).sum(axis=1)
        return losses, targets.sum(axis=1, keepdims=True) * softmax(outputs) - targets


@dataclass(frozen=True)
class SigmoidCrossEntropy(Joint):
    """Cross-entropy of sigmoid(outputs) against labels (N, K) of zeros and ones, summed over the K labels of a sample.

    The loss of an output z with the label y is max(z, 0) - y * z + log(1 + exp(-abs(z))): it does not overflow. A label
    is predicted where the output is above 0; a sample is right if all its labels are.
    """

    targets: ClassVar[str] = MULTILABEL
    metrics: ClassVar[tuple[str, ...]] = ("f1", "loss", "accuracy", "precision", "recall")

    def loss_and_gradient(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        y, small = labels.astype(outputs.dtype), np.exp(-np.abs(outputs))
        losses: Array = (np.maximum(outputs, 0) - y * outputs + np.log(1 + small)).sum(axis=1)
        return losses, _sigmoid(outputs, small) - y

    def predicted(self, outputs: Array) -> Array:
        """Whether each label is predicted, (N, K) bool."""
        above: Array = outputs > 0
        return above

    def correct(self, outputs: Array, labels: Array) -> Array:
        right: Array = (self.predicted(outputs) == labels).all(axis=1)
        return right

    def places(self, outputs: Array, labels: Array) -> Array:
        """Zeros: no single class is the true one."""
        return np.zeros(len(outputs), np.int64)

    def probabilities(self, outputs: Array) -> Array:
        """The probability of each label, (N, K)."""
        return _sigmoid(outputs, np.exp(-np.abs(outputs)))

    def answer(self, probabilities: Array) -> dict[str, Any]:
        labels = np.flatnonzero(probabilities > 0.5).tolist()
        return {"labels": labels, "probabilities": probabilities.tolist()}


def _sigmoid(x: Array, small: Array) -> Array:
    """1 / (1 + exp(-x)); ``small`` is exp(-abs(x))."""
    sigmoid: Array = np.where(x >= 0, x.dtype.type(1), small) / (1 + small)
    return sigmoid


@dataclass(frozen=True)
class Regression(Joint):
    """A function of the errors, outputs minus values (N, K), summed over the K values of a sample."""

    targets: ClassVar[str] = VALUES
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mae", "r2")

    def of_errors(self, errors: Array) -> tuple[Array, Array]:
        """The loss of each error, and its derivative; both (N, K)."""
        raise NotImplementedError

    def loss_and_gradient(self, outputs: Array, labels: Array) -> tuple[Array, Array]:
        losses, derivatives = self.of_errors(outputs - labels.astype(outputs.dtype))
        return losses.sum(axis=1), derivatives

    def predicted(self, outputs: Array) -> Array:
        """The outputs, (N, K)."""
        return outputs

    def correct(self, outputs: Array, labels: Array) -> Array:
        """All False: no value is right or wrong."""
        return np.zeros(len(outputs), bool)

    def places(self, outputs: Array, labels: Array) -> Array:
        """Zeros: there are no classes."""
        return np.zeros(len(outputs), np.int64)

    def probabilities(self, outputs: Array) -> Array:
        """The outputs themselves, (N, K): values, not probabilities."""
        return outputs

    def answer(self, probabilities: Array) -> dict[str, Any]:
        return {"values": probabilities.tolist()}


@dataclass(frozen=True)
class SquaredError(Regression):
    """The square of each error."""

    def of_errors(self, errors: Array) -> tuple[Array, Array]:
        return errors * errors, errors + errors


@dataclass(frozen=True)
class Huber(Regression):
    """Half the square of a small error, and a straight line beyond ``delta`` (Huber, 1964): outliers count less."""

    delta: float = option(1.0, "error from which on the Huber loss is linear", above=0, most=1e30)

    def of_errors(self, errors: Array) -> tuple[Array, Array]:
        delta = errors.dtype.type(self.delta)
        limited = np.clip(errors, -delta, delta)
        return limited * (errors - limited / 2), limited


def softmax(logits: Array) -> Array:
    """The probabilities (N, K) that the logits (N, K) stand for."""
    exponentials: Array = np.exp(logits - logits.max(axis=1, keepdims=True))
    exponentials /= exponentials.sum(axis=1, keepdims=True)
    return exponentials


LOSSES: dict[str, type[Any]] = {
    "cross-entropy": CrossEntropy,
    "sigmoid-cross-entropy": SigmoidCrossEntropy,
    "squared-error": SquaredError,
    "huber": Huber,
}
"""The losses by name."""
