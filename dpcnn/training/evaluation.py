"""Distributed evaluation: every sample is classified once, with the same result on any number of ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.base.timing import Timer
from dpcnn.data.dataset import Indices, Samples
from dpcnn.errors import DataError, DivergenceError
from dpcnn.nn.losses import Loss
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import chunks, split_evenly
from dpcnn.runs.progress import Metrics

EVALUATION_BLOCK = 128
"""Samples whose logits are computed at once: fixed, so that no sample's bits depend on the ranks."""


@dataclass(frozen=True)
class Answers:
    """The answers of a network for some samples, in their order.

    Attributes:
        labels: (n,) the true classes.
        predicted: (n,) the classes with the highest logits.
        correct: (n,) whether each is classified right, by the loss's own measure.
        losses: (n,) the loss of each.
    """

    labels: Array
    predicted: Array
    correct: Array
    losses: Array

    @property
    def metrics(self) -> Metrics:
        """Their sums: ``math.fsum`` is exact, so the result does not depend on an order."""
        return Metrics(fsum(self.losses), int(self.correct.sum()), len(self.labels))

    def confusion(self, classes: int) -> Array:
        """(classes, classes) counts: by row the true class, by column the predicted one."""
        counts = np.zeros((classes, classes), np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)
        return counts


def evaluate(comm: SerialComm, network: Network, params: Vector, samples: Samples, indices: Any, loss: Loss) -> Answers:
    """The answers for some samples; each rank computes a part of them.

    Args:
        indices: (n,) the indices of the samples, as an array or any sequence.
        loss: the loss of the training.

    Returns:
        The same on every rank: each sample once.
    """
    indices = np.asarray(indices)

    def answer(start: int, stop: int) -> Array:
        images, labels = samples.take(indices[start:stop])
        logits = network.logits(params, images)
        columns = labels, logits.argmax(axis=1), loss.correct(logits, labels), loss.loss(logits, labels)
        return np.stack(columns, axis=1)

    table = by_blocks(comm, network.timer, len(indices), 4, answer)
    return Answers(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2].astype(bool), table[:, 3])


def by_blocks(comm: SerialComm, timer: Timer, count: int, columns: int, compute: Callable[[int, int], Array]) -> Array:
    """A table (count, columns), float64, the same on every rank; each rank computes a part of it.

    Args:
        count: the number of rows: samples.
        compute: the rows from ``start`` to ``stop``, which are a block.
    """
    blocks = chunks(count, EVALUATION_BLOCK)
    bounds = [blocks[block][0] if block < len(blocks) else count for block in split_evenly(len(blocks), comm.size)]
    own = np.empty((max(np.diff(bounds)), columns))
    first, end = bounds[comm.rank : comm.rank + 2]
    for start, stop in blocks:
        if first <= start < end:
            with timer("validation"):
                own[start - first : stop - first] = compute(start, stop)
    with timer("waiting"):
        parts = comm.allgather(own)
    return np.concatenate([parts[rank, : bounds[rank + 1] - bounds[rank]] for rank in range(comm.size)])


def answers(
    comm: SerialComm, network: Network, params: Vector, images: Callable[[Indices], Array], count: int, loss: Loss
) -> Array:
    """The answers (count, K) of a network, float64, the same on every rank; each computes a part of them.

    They are what :meth:`dpcnn.nn.losses.Loss.probabilities` returns.

    Args:
        images: the images of these indices, which are below ``count``.

    Raises:
        DataError: on every rank, if an answer is not finite.
    """

    def compute(start: int, stop: int) -> Array:
        return loss.probabilities(network.logits(params, images(np.arange(start, stop))).astype(np.float64))

    table = by_blocks(comm, network.timer, count, network.classes, compute)
    if not np.isfinite(table).all():
        raise DataError("the network's answer is not finite: its weights are too large for these images")
    return table


def evaluate_sets(
    comm: SerialComm, network: Network, params: Vector, sets: Mapping[str, tuple[Samples, Any]], loss: Loss, epoch: int
) -> dict[str, float]:
    """NAME_loss and NAME_accuracy for each set of samples with its indices, unless it is empty.

    Raises:
        DivergenceError: on every rank, if a loss is not finite; ``epoch`` is for its message.
    """
    results: dict[str, float] = {}
    for name, (samples, indices) in sets.items():
        if not len(indices):
            continue
        metrics = evaluate(comm, network, params, samples, indices, loss).metrics
        if not isfinite(metrics.loss):
            raise DivergenceError(f"epoch {epoch}: the {name} loss is not finite; try a smaller --lr")
        results |= {f"{name}_loss": metrics.mean_loss, f"{name}_accuracy": metrics.accuracy}
    return results
