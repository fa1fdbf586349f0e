"""A trace of all ranks on one time line, for Perfetto (ui.perfetto.dev) and chrome://tracing."""

import json
import platform
import time
from typing import Any

from dpcnn.base.timing import Timer
from dpcnn.parallel.comm import SerialComm

ROUNDS = 21  # readings of all clocks
MICROSECONDS = 1e6


def clock_offset(comm: SerialComm) -> float:
    """Seconds by which this rank's clock is ahead of rank 0's. All ranks read their clocks when they leave a barrier.

    The ranks of rank 0's node share its clock. The error is the difference between the times of leaving the barrier.
    """
    hosts = comm.allgather_obj(platform.node())
    differences = []
    for _ in range(ROUNDS):
        comm.barrier()
        times = comm.allgather_obj(time.perf_counter())
        differences.append(times[comm.rank] - times[0])
    return 0.0 if hosts[comm.rank] == hosts[0] else sorted(differences)[ROUNDS // 2]


def merged(comm: SerialComm, timer: Timer, offset: float) -> bytes | None:
    """The recorded phases of all ranks in the Chrome trace format (JSON), on rank 0; None elsewhere.

    Args:
        offset: of this rank's clock.
    """
    intervals = [[phase, start - offset, end - start] for phase, start, end in timer.recorded]
    by_rank = comm.gather_obj([platform.node(), intervals])
    if by_rank is None:
        return None
    first = min((start for _, rows in by_rank for _, start, _ in rows), default=0.0)
    events: list[dict[str, Any]] = []
    for rank, (host, rows) in enumerate(by_rank):
        events.append({"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank} on {host}"}})
        events += [
            {
                "name": phase,
                "ph": "X",
                "pid": rank,
                "tid": 0,
                "ts": round((start - first) * MICROSECONDS, 1),
                "dur": round(seconds * MICROSECONDS, 1),
            }
            for phase, start, seconds in rows
        ]
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}).encode()
