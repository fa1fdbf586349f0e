"""Distributed evaluation: every sample is classified once, with the same result on any number of ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.data.dataset import Samples
from dpcnn.errors import DivergenceError
from dpcnn.nn.losses import Loss
from dpcnn.nn.metrics import METRICS, Answers
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import chunks, split_evenly

EVALUATION_BLOCK = 128
"""Samples whose logits are computed at once: fixed, so that no sample's bits depend on the ranks."""


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
    row = np.zeros(max(np.diff(bounds)), _row(samples.labels))
    first, end = bounds[comm.rank : comm.rank + 2]
    for start, stop in blocks:
        if first <= start < end:
            with network.timer("validation"):
                images, labels = samples.take(indices[start:stop])
                outputs, block = network.logits(params, images), row[start - first : stop - first]
                block["labels"], block["predicted"] = labels, loss.predicted(outputs)
                block["correct"], block["places"] = loss.correct(outputs, labels), loss.places(outputs, labels)
                block["losses"] = loss.loss(outputs, labels)
    with network.timer("waiting"):
        rows = comm.allgather(row.view(np.uint8)).view(row.dtype)
    table = np.concatenate([rows[rank, : bounds[rank + 1] - bounds[rank]] for rank in range(comm.size)])
    return Answers(**{name: table[name] for name in row.dtype.names or ()})


def _row(labels: Array) -> np.dtype[Any]:
    """The type of the answer for a sample."""
    of_sample = labels.dtype, labels.shape[1:]
    return np.dtype(
        [
            ("labels", *of_sample),
            ("predicted", *of_sample),
            ("correct", np.bool_),
            ("places", np.int64),
            ("losses", np.float64),
        ]
    )


def evaluate_sets(
    comm: SerialComm, network: Network, params: Vector, sets: Mapping[str, tuple[Samples, Any]], loss: Loss, epoch: int
) -> dict[str, float]:
    """NAME_METRIC for each set of samples with its indices, unless it is empty, and for each metric of the loss.

    Raises:
        DivergenceError: on every rank, if a loss is not finite; ``epoch`` is for its message.
    """
    results: dict[str, float] = {}
    for name, (samples, indices) in sets.items():
        if not len(indices):
            continue
        answers = evaluate(comm, network, params, samples, indices, loss)
        if not np.isfinite(answers.losses).all():
            raise DivergenceError(f"epoch {epoch}: the {name} loss is not finite; try a smaller --lr")
        results |= {f"{name}_{metric}": value for metric, value in measure(answers, loss).items()}
    return results


def measure(answers: Answers, loss: Loss) -> dict[str, float]:
    """The metrics of a loss, by name."""
    return {name: METRICS[name].of(answers) for name in loss.metrics}
