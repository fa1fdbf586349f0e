"""Distributed evaluation: every sample is classified once, with the same result on any number of ranks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.data.dataset import Indices, Samples
from dpcnn.errors import DataError, DivergenceError
from dpcnn.nn.losses import Loss
from dpcnn.nn.metrics import METRICS, Answers
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import chunks, split_evenly


def evaluate(comm: SerialComm, network: Network, params: Vector, samples: Samples, indices: Any, loss: Loss) -> Answers:
    """The answers for some samples; each rank computes a part of them.

    Args:
        indices: (n,) the indices of the samples, as an array or any sequence.
        loss: the loss of the training.

    Returns:
        The same on every rank: each sample once.
    """
    indices = np.asarray(indices)

    def answer(start: int, stop: int, out: Array) -> None:
        images, labels = samples.take(indices[start:stop])
        outputs = network.logits(params, images)
        out["labels"], out["predicted"] = labels, loss.predicted(outputs)
        out["correct"], out["places"] = loss.correct(outputs, labels), loss.places(outputs, labels)
        out["losses"] = loss.loss(outputs, labels)

    row = _row(samples.labels)
    table = by_blocks(comm, network, np.zeros(len(indices), row), answer)
    return Answers(**{name: table[name] for name in row.names or ()})


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


def by_blocks(comm: SerialComm, network: Network, rows: Array, compute: Callable[[int, int, Array], None]) -> Array:
    """Fill ``rows``, one for each sample, with the same values on every rank; each rank computes a part of them.

    Args:
        network: which says how many samples make a block.
        compute: writes the rows from ``start`` to ``stop``, which are a block, into an array.
    """
    blocks, timer = chunks(len(rows), network.at_once), network.timer
    bounds = [blocks[block][0] if block < len(blocks) else len(rows) for block in split_evenly(len(blocks), comm.size)]
    own = np.zeros((max(np.diff(bounds)), *rows.shape[1:]), rows.dtype)
    first, end = bounds[comm.rank : comm.rank + 2]
    for start, stop in blocks:
        if first <= start < end:
            with timer("validation"):
                compute(start, stop, own[start - first : stop - first])
    with timer("waiting"):
        parts = comm.allgather(own.view(np.uint8)).view(rows.dtype)
    for rank in range(comm.size):
        rows[bounds[rank] : bounds[rank + 1]] = parts[rank, : bounds[rank + 1] - bounds[rank]]
    return rows


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

    def answer(start: int, stop: int, out: Array) -> None:
        out[...] = loss.probabilities(network.logits(params, images(np.arange(start, stop))).astype(np.float64))

    table = by_blocks(comm, network, np.zeros((count, network.classes)), answer)
    if not np.isfinite(table).all():
        raise DataError("the network's answer is not finite: its weights are too large for these images")
    return table


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
