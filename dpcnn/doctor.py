"""Whether this machine, or this job, is fit for training: dpcnn doctor, alone or under mpirun and srun"""

import json
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_info

from dpcnn import __version__
from dpcnn.base.files import Folder, read_bytes
from dpcnn.base.numerics import fingerprint
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.cluster.checks import FAIL, Facts, judge, screen
from dpcnn.cluster.watch import Watch
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import SPLITS, read_manifest, verify
from dpcnn.errors import DataError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.launch import detect
from dpcnn.parallel.shared import share_or_part

UNFIT = 1  # exit status

SIDE, SECONDS = 512, 0.2  # of the matrix product that ranks are compared by
SMALL, LARGE = 1, 1 << 19  # float64 numbers exchanged to measure latency and bandwidth


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: doctor(comm, argv))


def doctor(comm: Alone, argv: Sequence[str] | None) -> int:
    """Collect facts of all ranks, judge them, and print a screen; status 1 where anything fails."""
    parser = Parser(prog="dpcnn.doctor", description=__doc__)
    parser.add_argument("--data", default="mnist", metavar="NAME|DIR", help="the data set to check (default mnist)")
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="where runs will be written (default .)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: checks, and the facts behind them")
    with comm.together():
        options = parse(parser, argv, comm)
    facts = collect(comm, options.data, options.out)
    checks = judge(facts)
    if comm.rank == 0:
        if options.json:
            print(json.dumps({"checks": [asdict(check) for check in checks], "facts": facts}))
        else:
            print(screen(checks))
    return UNFIT if any(check.verdict == FAIL for check in checks) else DONE


def collect(comm: Alone, data: str, out: Path) -> Facts:
    """All that is judged, the same on every rank."""
    apart = share_or_part(comm)
    watch = Watch(comm, 60, lambda line: None)
    unwatched = watch.warning
    watch.close()
    environment = dict(os.environ)
    shown = [name for name in environment if name.startswith(("SLURM_", "PBS_", "OAR_", "DPCNN_"))]
    return {
        "ranks": comm.allgather_obj(of_rank(comm)),
        "environment": comm.broadcast_obj({name: environment[name] for name in shown}),
        "now": comm.broadcast_obj(time.time()),
        "mpi": comm.library,
        "apart": apart,
        "unwatched": unwatched,
        "data": of_data(comm, data),
        "output": of_output(comm, out),
        "links": links(comm),
        "hidden": comm.hidden_part(LARGE),
    }


def of_rank(comm: Alone) -> Facts:
    """A rank's own facts."""
    launch = detect(os.environ)
    comm.barrier()
    return {
        "host": platform.node(),
        "launcher": launch.family if launch else None,
        "asked": launch.size if launch else 1,
        "size": comm.size,
        "cores": sorted(os.sched_getaffinity(0)),
        "host_cores": os.cpu_count(),
        "threads": max((library["num_threads"] for library in threadpool_info()), default=1),
        "software": {"python": platform.python_version(), "dpcnn": __version__, "at": str(Path(__file__).parent)},
        "numerics": fingerprint(),
        "memory_mb": available_memory(),
        "tmp_mb": shutil.disk_usage(tempfile.gettempdir()).free >> 20,
        "gflops": gflops(),
    }


def available_memory() -> int:
    """Megabytes that this host, or the control group of this process, still has."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = next(int(line.split()[1]) >> 10 for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    limit, used = group / "memory.max", group / "memory.current"
    with suppress(OSError, ValueError):  # no such group, or "max"
        found = min(found, (int(limit.read_text()) - int(used.read_text())) >> 20)
    return found


def gflops() -> float:
    """10^9 floating-point operations a second of this rank, while all ranks multiply matrices."""
    a = np.full((SIDE, SIDE), 0.5, np.float32)
    out = np.empty_like(a)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        np.matmul(a, a, out=out)
        count += 1
    return round(2e-9 * count * SIDE**3 / (time.perf_counter() - started), 1)


def of_data(comm: Alone, name: str) -> Facts:
    """What is wrong with the data set, as each rank sees it; the ranks share the checking of its shards."""
    fault, checksum = "", ""
    try:
        folder = find_data(name)
        manifest = read_manifest(folder)
        checksum = manifest.checksum
        shards = [shard for split in SPLITS for shard in manifest.splits[split]]
        for shard in shards[comm.rank :: comm.size]:
            verify(folder, shard)
    except DataError as error:
        fault = str(error)
    told = comm.allgather_obj([fault, checksum])
    return {"name": name, "faults": [fault for fault, _ in told], "checksums": [checksum for _, checksum in told]}


def of_output(comm: Alone, folder: Path) -> Facts:
    """What the file system of the runs can do: rank 0 writes, all look."""
    found: Facts = {"folder": str(folder), "fault": "", "locks": True, "free_mb": 0, "seen": []}
    probe = folder / f".dpcnn-doctor-{secrets.token_hex(8)}"
    name = comm.broadcast_obj(str(probe))
    if comm.rank == 0:
        try:
            found["free_mb"] = shutil.disk_usage(folder).free >> 20
            with Folder(folder) as place:
                place.write(probe.name, b"old")
                place.write(probe.name, b"whole")
                if read_bytes(probe) != b"whole":
                    found["fault"] = "a file that was moved over another has not taken its place"
                try:
                    place.lock(probe.name, "")
                except OSError:
                    found["locks"] = False
        except OSError as error:
            found["fault"] = f"{error.strerror}"
    comm.barrier()
    seen = comm.allgather_obj(Path(name).exists())
    comm.barrier()
    if comm.rank == 0:
        probe.unlink(missing_ok=True)
        found["seen"] = seen
    whole: Facts = comm.broadcast_obj(found)
    return whole


def links(comm: Alone) -> list[Facts]:
    """Latency and bandwidth between rank 0 and one rank of its own host and of each other one."""
    hosts = comm.allgather_obj(platform.node())
    partners: dict[str, int] = {}
    for rank in range(1, comm.size):
        partners.setdefault(hosts[rank], rank)
    found = []
    for host, partner in partners.items():
        comm.barrier()
        seconds = [swap_seconds(comm, partner, size) for size in (SMALL, LARGE)] if comm.rank in (0, partner) else []
        latency, large = comm.broadcast_obj(seconds)
        rate = 8 * LARGE / max(large - latency, 1e-9)
        found.append({"host": host, "near": host == hosts[0], "latency": latency, "bytes_per_second": rate})
    return found


def swap_seconds(comm: Alone, partner: int, numbers: int, rounds: int = 7) -> float:
    """The median time in which rank 0 and its partner hand each other so many float64 numbers."""
    send, receive, times = np.zeros(numbers), np.empty(numbers), []
    for _ in range(rounds + 2):
        started = time.perf_counter()
        comm.swap(send, receive, partner if comm.rank == 0 else 0)
        times.append(time.perf_counter() - started)
    return median(times[2:])


if __name__ == "__main__":
    sys.exit(main())
