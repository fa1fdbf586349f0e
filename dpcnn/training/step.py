"""A step: gradients, their sum, one update, one decision of all ranks."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Vector, all_finite
from dpcnn.errors import DivergenceError
from dpcnn.nn.layer import Keep
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import chunks
from dpcnn.runs.progress import Metrics
from dpcnn.training.divergence import divergence
from dpcnn.training.gradient import MicrobatchGradient
from dpcnn.training.plan import Plan
from dpcnn.training.state import PARAMETERS
from dpcnn.training.team import Team


class Sums(NamedTuple):
    """What one rank knows of a step.

    Attributes:
        losses, correct_counts: of each of its microbatches, the summed loss and the number of images classified right.
        stop: it was asked to stop.
        finite: all elements of its part of the gradient are.
        waited: seconds that it has waited so far.
    """

    losses: Sequence[float]
    correct_counts: Sequence[int]
    stop: bool
    finite: bool
    waited: float


class Decision(NamedTuple):
    """What all ranks know of a step; the same on each.

    Attributes:
        stop: any rank was asked to stop.
        finite: the loss and the gradient are.
        metrics: of the batch.
        waited: (ranks,) seconds that each rank has waited so far.
    """

    stop: bool
    finite: bool
    metrics: Metrics
    waited: NDArray[np.float64]


def decide(comm: SerialComm, sums: Sums, microbatches: int, count: int, classified: bool) -> Decision:
    """Exchange what the ranks know, and draw the same conclusions on each.

    ``math.fsum`` is exact, so the sums do not depend on which rank held which part of them.

    Args:
        microbatches: of the step, on all ranks.
        count: samples of the step.
        classified: whether the samples are classified, so that some are right.
    """
    row = np.zeros(1, message(math.ceil(microbatches / comm.size)))[0]
    row["stop"], row["finite"], row["waited"] = sums.stop, sums.finite, sums.waited
    row["losses"][: len(sums.losses)] = sums.losses
    row["corrects"][: len(sums.correct_counts)] = sums.correct_counts
    rows = comm.allgather(np.atleast_1d(row).view(np.uint8)).view(row.dtype)
    losses = rows["losses"].ravel()
    finite = bool(rows["finite"].all() and np.isfinite(losses).all())
    correct = int(rows["corrects"].sum()) if classified else None
    return Decision(
        stop=bool(rows["stop"].any()),
        finite=finite,
        metrics=Metrics(math.fsum(losses), correct, count) if finite else Metrics(),
        waited=rows["waited"].ravel(),
    )


@cache  # a run has two kinds of steps: with a full batch, and an epoch's last
def message(microbatches: int) -> np.dtype[Any]:
    """The layout of a rank's message, with room for so many microbatches."""
    return np.dtype(
        [
            ("stop", np.bool_),
            ("finite", np.bool_),
            ("waited", np.float64),
            ("losses", np.float64, (microbatches,)),
            ("corrects", np.int64, (microbatches,)),
        ]
    )


def take_step(
    team: Team, plan: Plan, microbatch_gradient: MicrobatchGradient, stop: Callable[[], bool], lr: float
) -> Decision:
    """Take a step on every rank of the team, from ``team.state.now`` to ``team.state.next``.

    The ranks decide at the end, when all have written ``next``: only their decision makes the step count.

    Args:
        plan: the plan of the run, which has the batch of the step.
        microbatch_gradient: computes the gradient of a microbatch.
        stop: whether this rank was asked to stop.
        lr: the learning rate of the step.

    Returns:
        The decision of all ranks.

    Raises:
        DivergenceError: on every rank; ``next`` is of no use.
    """
    state, exchange, progress, timer = team.state, team.exchange, team.state.progress, team.network.timer
    params = state.now[PARAMETERS]
    batch = plan.batch(progress.epochs, progress.step)
    next_batch = plan.next_batch(progress.epochs, progress.step)
    microbatches = chunks(len(batch), team.config.microbatch)
    results: list[tuple[float, int]] = []

    def gradient_of(number: int, out: Vector, keep: Keep | None) -> None:
        part = slice(*microbatches[number])
        microbatch_gradient.read_ahead(next_batch[part])
        results.append(microbatch_gradient(params, progress.epochs, batch[part], out, keep))

    grads = exchange.sum([stop - start for start, stop in microbatches], gradient_of)
    means = team.update.take_running_means(params[team.shard], grads, len(batch))
    with timer("optimizer"):
        finite = all_finite(grads)
        now, after = team.shards(state.now), team.shards(state.next)
        team.update(now, after, grads, progress.step + 1, lr, len(batch), means)
    exchange.fetch(state.next[PARAMETERS])
    losses, correct_counts = zip(*results, strict=True) if results else ((), ())
    with timer("waiting"):
        sums = Sums(losses, correct_counts, stop(), finite, timer.seconds["waiting"])
        decision = decide(team.comm, sums, len(microbatches), len(batch), microbatch_gradient.classifies)
    if not decision.finite:
        where = divergence(team.comm, team.network, params, microbatch_gradient.samples, batch, microbatches)
        raise DivergenceError(
            f"step {progress.step + 1}, epoch {progress.epochs + 1}: the loss is not finite; {where}; "
            f"the last checkpoint stays as it was; try a smaller --lr than {team.config.lr:g}"
        )
    return decision
