"""What the ranks tell each other in a step, once all gradients are added up: one small message from each to all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.progress import Metrics, total


@dataclass(frozen=True)
class Sums:
    """What one rank knows of a step.

    Attributes:
        losses, correct_counts: of each of its microbatches, the summed loss and the number of images classified right.
        squares: of the elements of the gradient that are its alone, the sum of squares of each block; or none.
        stop: it was asked to stop.
        finite: all elements of its part of the gradient are.
        waited: seconds that it has waited so far.
    """

    losses: Sequence[float]
    correct_counts: Sequence[int]
    squares: NDArray[np.float64]
    stop: bool
    finite: bool
    waited: float


@dataclass(frozen=True)
class Decision:
    """What all ranks know of a step; the same on each.

    Attributes:
        stop: any rank was asked to stop.
        finite: the loss and the gradient are.
        metrics: of the batch.
        norm: of the summed gradient, from the blocks' sums of squares; 0 where there are none.
        waited: (ranks,) seconds that each rank has waited so far.
    """

    stop: bool
    finite: bool
    metrics: Metrics
    norm: float
    waited: NDArray[np.float64]


def decide(comm: SerialComm, sums: Sums, microbatches: int, blocks: int, count: int) -> Decision:
    """Exchange what the ranks know, and draw the same conclusions on each.

    ``math.fsum`` is exact, so the sums do not depend on which rank held which part of them.

    Args:
        microbatches: of the step, on all ranks.
        blocks: the most that any rank has.
        count: samples of the step.
    """
    row = np.zeros(1, message(math.ceil(microbatches / comm.size), blocks))[0]
    row["stop"], row["finite"], row["waited"] = sums.stop, sums.finite, sums.waited
    row["losses"][: len(sums.losses)] = sums.losses
    row["corrects"][: len(sums.correct_counts)] = sums.correct_counts
    row["squares"][: len(sums.squares)] = sums.squares
    rows = comm.allgather(np.atleast_1d(row).view(np.uint8)).view(row.dtype)
    losses, squares = rows["losses"].ravel(), rows["squares"].ravel()
    finite = bool(rows["finite"].all() and np.isfinite(losses).all() and np.isfinite(squares).all())
    return Decision(
        stop=bool(rows["stop"].any()),
        finite=finite,
        metrics=total(losses, rows["corrects"].ravel(), count) if finite else Metrics(),
        norm=math.sqrt(math.fsum(squares)) if finite else 0.0,
        waited=rows["waited"].ravel(),
    )


@cache  # a run has two kinds of steps: with a full batch, and an epoch's last
def message(microbatches: int, blocks: int) -> np.dtype[Any]:
    """The layout of a rank's message, with room for so many microbatches and blocks."""
    return np.dtype(
        [
            ("stop", np.bool_),
            ("finite", np.bool_),
            ("waited", np.float64),
            ("losses", np.float64, (microbatches,)),
            ("corrects", np.int64, (microbatches,)),
            ("squares", np.float64, (blocks,)),
        ]
    )
