"""Metrics: figures of merit of a network's answers for many samples.

Each is a function of all answers, which every rank has in the order of the samples. Counts are integers, and sums of
floats are those of ``math.fsum``, which are exact. So a metric does not depend on the number of ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import fsum, inf
from typing import NamedTuple

import numpy as np

from dpcnn.base.arrays import Array

TOP = 5
MOST_LOSS = 4e38
"""The largest loss of a sample, which is a float32."""


@dataclass(frozen=True)
class Answers:
    """The answers of a network for some samples, in their order.

    Attributes:
        labels: the targets: (n,) the true classes, or (n, K) zeros and ones, or (n, K) values.
        predicted: the predictions, of the same shape: see :meth:`dpcnn.nn.losses.Loss.predicted`.
        correct: (n,) whether each is right, by the loss's own measure.
        losses: (n,) the loss of each.
        places: (n,) how many classes have a higher output than the true one.
    """

    labels: Array
    predicted: Array
    correct: Array
    losses: Array
    places: Array

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def confusion(self, classes: int) -> Array:
        """(classes, classes) counts: by row the true class, by column the predicted one. Labels are (n,)."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts

    @cached_property
    def class_counts(self) -> tuple[Array, Array, Array]:
        """For each class, the numbers of right predictions, of all predictions and of samples; each (K,) integers."""
        if self.labels.ndim == 2:
            arrays = self.labels * self.predicted, self.predicted, self.labels
            right, predicted, samples = (array.sum(axis=0, dtype=np.int64) for array in arrays)
            return right, predicted, samples
        classes = 1 + int(max(self.labels.max(), self.predicted.max()))
        arrays = self.labels[self.labels == self.predicted], self.predicted, self.labels
        right, predicted, samples = (np.bincount(array, minlength=classes) for array in arrays)
        return right, predicted, samples


def loss(answers: Answers) -> float:
    """The mean loss."""
    return fsum(answers.losses) / answers.count


def accuracy(answers: Answers) -> float:
    """The fraction of samples that are classified right; with several labels per sample, in all labels."""
    return int(answers.correct.sum()) / answers.count


def top5(answers: Answers) -> float:
    """The fraction of samples whose class has one of the five highest outputs."""
    return int((answers.places < TOP).sum()) / answers.count


def precision(answers: Answers) -> float:
    """The mean over the classes of the fraction of their predictions that are right."""
    right, predicted, _ = answers.class_counts
    return _macro(answers, right, predicted)


def recall(answers: Answers) -> float:
    """The mean over the classes of the fraction of their samples that are predicted right."""
    right, _, samples = answers.class_counts
    return _macro(answers, right, samples)


def f1(answers: Answers) -> float:
    """The mean over the classes of the harmonic mean of precision and recall."""
    right, predicted, samples = answers.class_counts
    return _macro(answers, 2 * right, predicted + samples)


def _macro(answers: Answers, parts: Array, wholes: Array) -> float:
    """The mean of parts / wholes, 0 where a whole is 0.

    The mean is over all labels, or over the classes that occur in the samples or in the predictions.
    """
    if answers.labels.ndim == 1:
        _, predicted, samples = answers.class_counts
        parts, wholes = (each[predicted + samples > 0] for each in (parts, wholes))
    return fsum(parts / np.maximum(wholes, 1)) / len(parts)


def mae(answers: Answers) -> float:
    """The mean absolute error over all samples and values."""
    return fsum(np.abs(_errors(answers)).ravel()) / answers.labels.size


def r2(answers: Answers) -> float:
    """The coefficient of determination, 1 - (sum of squared errors) / (sum of squared deviations from the mean).

    The mean over the K values; that of a constant value is 1 if all predictions are exact, otherwise 0.
    """
    errors = _errors(answers)
    scores = []
    for column in range(errors.shape[1]):
        labels = answers.labels[:, column].astype(np.float64)
        deviations = labels - fsum(labels) / len(labels)
        rest, whole = fsum(errors[:, column] ** 2), fsum(deviations**2)
        scores.append(1 - rest / whole if whole else float(rest == 0))
    return fsum(scores) / len(scores)


def _errors(answers: Answers) -> Array:
    """The predictions minus the targets, (n, K) float64."""
    errors: Array = answers.predicted.astype(np.float64) - answers.labels
    return errors


class Metric(NamedTuple):
    """A metric that a loss can name.

    Attributes:
        of: computes it from all answers.
        higher: whether a higher value is better.
        least, most: its bounds.
    """

    of: Callable[[Answers], float]
    higher: bool
    least: float = 0.0
    most: float = 1.0

    def merit(self, value: float) -> float:
        """A number that is higher for a better value."""
        return value if self.higher else -value


METRICS: dict[str, Metric] = {
    "loss": Metric(loss, higher=False, least=-MOST_LOSS, most=MOST_LOSS),
    "accuracy": Metric(accuracy, higher=True),
    "top5": Metric(top5, higher=True),
    "precision": Metric(precision, higher=True),
    "recall": Metric(recall, higher=True),
    "f1": Metric(f1, higher=True),
    "mae": Metric(mae, higher=False, most=inf),
    "r2": Metric(r2, higher=True, least=-inf),
}
"""The metrics by name."""
