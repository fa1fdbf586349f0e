"""The facts for dpcnn.doctor: each rank examines itself, and the ranks measure their connections."""

import os
import platform
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
from threadpoolctl import threadpool_info

from dpcnn import __version__
from dpcnn.base.files import Folder, read_bytes
from dpcnn.base.machine import memory_left
from dpcnn.base.numerics import fingerprint
from dpcnn.cluster.checks import Facts
from dpcnn.cluster.watch import Watch
from dpcnn.data.dataset import find_data
from dpcnn.data.shard_files import verify
from dpcnn.data.shards import read_manifest
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import detect
from dpcnn.parallel.shared import share_or_part
from dpcnn.parallel.survival import survival

PACKAGE = Path(__file__).parents[1]

SIDE, SECONDS = 512, 0.2  # of the matrix product that compares the ranks
SMALL, LARGE = 1, 1 << 19  # float64 numbers exchanged to measure latency and bandwidth
ROUNDS = 7  # of each measurement, after two that do not count


def collect(comm: SerialComm, data: str, out: Path) -> Facts:
    """All facts, the same on every rank.

    Args:
        data: name or folder of the data set to check.
        out: the folder for runs.
    """
    apart = share_or_part(comm)
    watch = Watch(comm, 60, lambda line: None)
    unwatched = watch.warning
    watch.close()
    return {
        "ranks": comm.allgather_obj(of_rank(comm)),
        "environment": comm.broadcast_obj(scheduler_variables()),
        "now": comm.broadcast_obj(time.time()),
        "mpi": comm.library,
        "apart": apart,
        "unwatched": unwatched,
        "survival": survival(comm),
        "data": of_data(comm, data),
        "output": of_output(comm, out),
        "links": links(comm),
        "hidden": comm.overlap_fraction(LARGE),
    }


def scheduler_variables() -> dict[str, str]:
    """The environment variables by which a scheduler describes its job, and dpcnn's own."""
    prefixes = ("SLURM_", "PBS_", "OAR_", "DPCNN_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def of_rank(comm: SerialComm) -> Facts:
    """The facts of this rank alone."""
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
        "software": {"python": platform.python_version(), "dpcnn": __version__, "at": str(PACKAGE)},
        "numerics": fingerprint(),
        "memory_mb": memory_left() >> 20,
        "gflops": round(1e-9 * sgemm_speed(SIDE, SECONDS), 1),
    }


def sgemm_speed(side: int, seconds: float) -> float:
    """Floating-point operations per second of this rank, in products of square float32 matrices."""
    a = np.full((side, side), 0.5, np.float32)
    out = a @ a
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        np.matmul(a, a, out=out)
        count += 1
    return 2 * count * side**3 / (time.perf_counter() - started)


def of_data(comm: SerialComm, name: str) -> Facts:
    """The faults of the data set and its checksum, as each rank sees it; each rank checks some of the shards."""
    fault, checksum = "", ""
    try:
        folder = find_data(name)
        manifest = read_manifest(folder)
        checksum = manifest.checksum
        for shard in manifest.shards[comm.rank :: comm.size]:
            verify(folder, shard)
    except DataError as error:
        fault = str(error)
    results = comm.allgather_obj([fault, checksum])
    return {"name": name, "faults": [fault for fault, _ in results], "checksums": [checksum for _, checksum in results]}


def of_output(comm: SerialComm, folder: Path) -> Facts:
    """The properties of the file system for the runs: rank 0 writes a file, and all ranks look for it."""
    probe = Path(comm.broadcast_obj(str(folder / f".dpcnn-doctor-{secrets.token_hex(8)}")))
    result: Facts = {"folder": str(folder), "fault": "", "locks": True, "free_mb": 0}
    if comm.rank == 0:
        result |= written(probe)
    comm.barrier()
    seen = comm.allgather_obj(probe.exists())
    comm.barrier()
    if comm.rank == 0:
        with suppress(OSError):  # there is no such file, or no such folder
            probe.unlink()
    complete: Facts = comm.broadcast_obj({**result, "seen": seen})
    return complete


def written(probe: Path) -> Facts:
    """The results of writing, replacing and locking a file."""
    result: Facts = {}
    try:
        result["free_mb"] = shutil.disk_usage(probe.parent).free >> 20
        with Folder(probe.parent) as folder:
            folder.write(probe.name, b"old")
            folder.write(probe.name, b"whole")
            if read_bytes(probe) != b"whole":
                result["fault"] = "a file that was moved over another did not replace it"
            try:
                folder.lock(probe.name, "")
            except OSError:
                result["locks"] = False
    except OSError as error:
        result["fault"] = f"{error.strerror}"
    return result


def links(comm: SerialComm) -> list[Facts]:
    """Latency and bandwidth between rank 0 and one rank of each node, including its own."""
    hosts = comm.allgather_obj(platform.node())
    partners: dict[str, int] = {}
    for rank in range(1, comm.size):
        partners.setdefault(hosts[rank], rank)
    measured = []
    for host, partner in partners.items():
        comm.barrier()
        seconds = (
            [sendrecv_seconds(comm, partner, size) for size in (SMALL, LARGE)] if comm.rank in (0, partner) else []
        )
        latency, large = comm.broadcast_obj(seconds)
        rate = 8 * LARGE / max(large - latency, 1e-9)
        measured.append({"host": host, "near": host == hosts[0], "latency": latency, "bytes_per_second": rate})
    return measured


def sendrecv_seconds(comm: SerialComm, partner: int, count: int) -> float:
    """The median time in which rank 0 and ``partner`` exchange ``count`` float64 numbers."""
    send, receive, times = np.zeros(count), np.empty(count), []
    for _ in range(2 + ROUNDS):
        started = time.perf_counter()
        comm.sendrecv(send, receive, partner if comm.rank == 0 else 0)
        times.append(time.perf_counter() - started)
    return median(times[2:])
