"""Distributed evaluation: exact sums and counts, the same on any number of ranks."""

import numpy as np

from dpcnn.data.samples import Samples
from dpcnn.metrics import Tally, total
from dpcnn.nn.losses import softmax_cross_entropy
from dpcnn.nn.network import Network, Vector
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.split import cut, shares

EVALUATION_BLOCK = 128
"""Samples whose logits are computed at once: fixed, so that no sample's bits depend on the ranks."""


def evaluate(
    comm: Alone, network: Network, vector: Vector, samples: Samples, numbers: range, smoothing: float
) -> Tally:
    """The loss and accuracy of some samples, each rank taking a share of them.

    Args:
        numbers: which samples, by number.
        smoothing: of the targets, as in training.

    Returns:
        The same tally on every rank: each sample counted once, none twice.
    """
    blocks = cut(len(numbers), EVALUATION_BLOCK)
    bounds = shares(len(blocks), comm.size)
    row = np.zeros((1 + len(blocks) // comm.size, 2))  # of loss and count right: a share is never longer
    for place, (start, stop) in enumerate(blocks[bounds[comm.rank] : bounds[comm.rank + 1]]):
        images, labels = samples.take(np.array(numbers[start:stop]))
        logits = network.logits(vector, images)
        losses, _ = softmax_cross_entropy(logits, labels, smoothing)
        row[place] = losses.sum(dtype=np.float64), (logits.argmax(axis=1) == labels).sum()
    rows = comm.allgather(row).reshape(-1, 2)
    return total(rows[:, 0], rows[:, 1], len(numbers))
