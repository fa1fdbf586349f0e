"""The end of a run: its trace, its times, its last event, the curves, the last line."""

import json
import platform
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpcnn.base.text import text
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import epoch_rows, evaluated
from dpcnn.runs.trace import merged
from dpcnn.training.trainer import Trainer

Draw = Callable[[Sequence[Path], Path], str]
"""Draws the curves of runs to files with this stem, and returns a line that says so."""


def write_trace(trainer: Trainer, reporter: Reporter, offset: float) -> None:
    """Write the trace of all ranks and print its path; ``offset`` is that of this rank's clock, in seconds."""
    trace = merged(trainer.comm, trainer.timer, offset)
    with trainer.writing("report"):
        if trace is not None:
            trainer.run.write(trainer.run.trace, trace)
            reporter.say(f"trace: {trainer.run.trace}; open it in ui.perfetto.dev or chrome://tracing")


def write_times(trainer: Trainer, reporter: Reporter) -> float:
    """Write the times of each rank, print the waiting, and return the highest peak memory of the ranks in MB."""
    comm = trainer.comm
    facts = {
        "host": platform.node(),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "seconds": trainer.timer.rounded(),
        "waited_for": round(float(trainer.waiting.seconds[comm.members[comm.rank]]), 3),
    }
    ranks = comm.allgather_obj(facts)
    with trainer.writing("report"):
        if comm.rank == 0:
            if comm.size > 1:
                reporter.say(straggler_bill(ranks))
            times = json.dumps({"mpi": comm.library, "ranks": ranks}, indent=1)
            trainer.run.write(trainer.run.times, f"{times}\n".encode())
    return float(max(rank["peak_memory_mb"] for rank in ranks))


def finish(trainer: Trainer, reporter: Reporter, peak: float, draw: Draw | None) -> None:
    """Draw the curves unless ``draw`` is None, and print the table of epochs and the last line."""
    progress, folder = trainer.progress, trainer.run.path
    best, last, sha256 = progress.best(trainer.config.monitor), progress.epoch_events[-1], trainer.weights_sha256
    with trainer.writing("report"):
        if trainer.comm.rank == 0:
            reporter.say(text(*epoch_rows(progress.epoch_events)))
            if draw:
                reporter.say(draw([folder], folder / "curves"))
            seconds = sum(event["seconds"] for event in progress.epoch_events)
            speed = trainer.plan.images(progress.step) / max(seconds, 1e-3)  # the seconds are rounded to milliseconds
            results = [f"{kind} accuracy {last[f'{kind}_accuracy']:.4f}" for kind in evaluated(last) or ["train"]]
            if best and "validation_accuracy" in best:
                results[0] += f" (best {best['validation_accuracy']:.4f}, epoch {best['epoch']})"
            reporter.say(
                f"{', '.join(results)}, {progress.seconds:.1f} s, {speed:,.0f} images/s, "
                f"peak memory {peak:.0f} MB per rank, {folder}, weights {sha256}"
            )


def say_stopped(trainer: Trainer, reporter: Reporter) -> None:
    """Print the step at which a run was stopped, and the reason."""
    reasons = trainer.comm.allgather_obj(trainer.stop.reason)
    rank, why = next(((rank, why) for rank, why in enumerate(reasons) if why), (0, "by a rank that has died"))
    with trainer.writing("report"):
        reporter.say(
            f"stopped at step {trainer.progress.step}: {why} (rank {rank}); "
            f"continue with --resume --out {trainer.run.path}"
        )


def straggler_bill(ranks: Sequence[dict[str, Any]]) -> str:
    """The fraction of their time that the ranks waited, and the rank that the others waited for most."""
    waiting = sum(rank["seconds"]["waiting"] for rank in ranks)
    spent = sum(sum(rank["seconds"].values()) for rank in ranks)
    billed = sum(rank["waited_for"] for rank in ranks)
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank]["waited_for"])
    line = f"the ranks were idle for {waiting / max(spent, 1e-9):.1%} of the time"  # 0 if the run was complete
    if billed <= 0:
        return line
    share = ranks[slowest]["waited_for"] / billed
    return f"{line}; {share:.0%} of the waits for a single rank were for rank {slowest} ({ranks[slowest]['host']})"
