"""The times of a run: times.json, trace.json, and the line about the ranks that others waited for."""

import json
import platform
from collections.abc import Sequence
from typing import Any

from dpcnn.base.machine import peak_memory
from dpcnn.runs.console import Reporter
from dpcnn.runs.trace import merged
from dpcnn.training.trainer import Trainer


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
        "peak_memory_mb": round(peak_memory(), 1),
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
