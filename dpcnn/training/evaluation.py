"""Distributed evaluation: every sample is classified once, with the same result on any number of ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import fsum, isfinite
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.data.dataset import Samples
from dpcnn.errors import DivergenceError
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
    blocks = chunks(len(indices), EVALUATION_BLOCK)
    bounds = [
        blocks[block][0] if block < len(blocks) else len(indices) for block in split_evenly(len(blocks), comm.size)
    ]
    row = np.empty((max(np.diff(bounds)), 4))
    first, end = bounds[comm.rank : comm.rank + 2]
    for start, stop in blocks:
        if first <= start < end:
            with network.timer("validation"):
                images, labels = samples.take(indices[start:stop])
                logits = network.logits(params, images)
                columns = labels, logits.argmax(axis=1), loss.correct(logits, labels), loss.loss(logits, labels)
                row[start - first : stop - first] = np.stack(columns, axis=1)
    with network.timer("waiting"):
        rows = comm.allgather(row)
    table = np.concatenate([rows[rank, : bounds[rank + 1] - bounds[rank]] for rank in range(comm.size)])
    return Answers(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2].astype(bool), table[:, 3])


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
