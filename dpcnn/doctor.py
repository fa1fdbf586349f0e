"""Whether this machine, or this job, is fit for training: dpcnn doctor, alone or under mpirun and srun"""

import fcntl
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from dpcnn import __version__
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.config import Config
from dpcnn.data.samples import find_data
from dpcnn.data.shards import SPLITS, read_manifest, verify
from dpcnn.errors import ConfigError, DataError
from dpcnn.fingerprint import differences, fingerprint
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.launch import detect
from dpcnn.parallel.shared import share_or_part
from dpcnn.parallel.watch import Watch
from dpcnn.stopping import job_end

OK, WARN, FAIL = "OK", "WARN", "FAIL"
UNFIT = 1  # exit status

RANK_MB = 300  # memory that a rank of the recipe simple-cnn wants
LEAST_FREE_MB = 500  # on the output's file system
SIDE, SECONDS = 512, 0.2  # of the matrix product that ranks are compared by
SMALL, LARGE = 1, 1 << 19  # float64 numbers exchanged to measure latency and bandwidth
SLOW_LATENCY = 1e-3  # seconds
SLOW_RANK = 0.6  # of the median speed

Facts = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """What was looked at, the verdict, what was found, and what to do where it is not OK."""

    name: str
    verdict: str
    found: str
    advice: str = ""


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


def screen(checks: Sequence[Check]) -> str:
    """A line for each check, and below those that are not OK what to do."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:<5} {check.name:<14} {check.found}")
        if check.verdict != OK:
            lines.append(f"{'':<20} -> {check.advice}")
    count = Counter(check.verdict for check in checks)
    return "\n".join([*lines, f"{count[OK]} OK, {count[WARN]} WARN, {count[FAIL]} FAIL"])


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
    probe = folder / f".dpcnn-doctor-{os.getpid()}"
    name = comm.broadcast_obj(str(probe))
    if comm.rank == 0:
        try:
            found["free_mb"] = shutil.disk_usage(folder).free >> 20
            probe.with_suffix(".new").write_bytes(b"whole")
            with open(probe, "wb") as file:
                file.write(b"old")
                os.fsync(file.fileno())
            os.replace(probe.with_suffix(".new"), probe)
            if probe.read_bytes() != b"whole":
                found["fault"] = "a file that was moved over another has not taken its place"
            with open(probe, "rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    found["locks"] = False
        except OSError as error:
            found["fault"] = f"{error.strerror}"
    comm.barrier()
    seen = comm.allgather_obj(Path(name).exists())
    comm.barrier()
    if comm.rank == 0:
        for path in (probe, probe.with_suffix(".new")):
            path.unlink(missing_ok=True)
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


def judge(facts: Facts) -> list[Check]:
    """The verdicts on some facts; a pure function of them."""
    checks = (
        launcher, rank_count, binding, software, numerics, speed, memory, shared_memory, output, locks, data,
        network, progress, heartbeats, time_left,
    )  # fmt: skip
    return [check(facts) for check in checks]


def launcher(facts: Facts) -> Check:
    """Whether launcher and MPI library fit each other."""
    odd = [rank for rank, found in enumerate(facts["ranks"]) if found["asked"] > found["size"]]
    families = {found["launcher"] or "no launcher" for found in facts["ranks"]}
    told = f"{facts['mpi']}; started by {', '.join(sorted(families))}"
    if odd:
        asked = facts["ranks"][odd[0]]["asked"]
        return Check("launcher", FAIL, f"{told}: {asked} processes, each alone", "start with that library's own mpirun")
    return Check("launcher", OK, told)


def by_host(facts: Facts) -> Iterator[tuple[str, list[Facts]]]:
    """The ranks of each host."""
    for host in dict.fromkeys(found["host"] for found in facts["ranks"]):
        yield host, [found for found in facts["ranks"] if found["host"] == host]


def rank_count(facts: Facts) -> Check:
    """Whether there are as many ranks as the scheduler meant, and no more than cores."""
    size, environment = len(facts["ranks"]), facts["environment"]
    per_host = ", ".join(f"{len(ranks)} on {host}" for host, ranks in by_host(facts))
    meant = environment.get("SLURM_NTASKS") or environment.get("PBS_NP")
    if meant and meant.isdecimal() and size != int(meant):
        return Check("ranks", WARN, f"{size}, where the job has {meant} tasks", "give -n, or leave it to the scheduler")
    for host, ranks in by_host(facts):
        cores = len(set().union(*(found["cores"] for found in ranks)))
        if len(ranks) > cores:
            found = f"{len(ranks)} ranks on {host} share {cores} cores"
            return Check("ranks", WARN, found, "no more than a rank a core: fewer ranks, or more nodes")
    return Check("ranks", OK, per_host)


def binding(facts: Facts) -> Check:
    """Whether the ranks of a host get in each other's way."""
    for host, ranks in by_host(facts):
        cores = set().union(*(found["cores"] for found in ranks))
        threads = sum(found["threads"] for found in ranks)
        most = max(found["threads"] for found in ranks)
        if most > 1 and threads > len(cores):
            found = f"{len(ranks)} ranks x {most} BLAS threads on {len(cores)} cores of {host}"
            return Check("binding", FAIL, found, "OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1")
        masks = Counter(tuple(found["cores"]) for found in ranks)
        mask, count = max(masks.items(), key=lambda item: item[1] / len(item[0]))
        if count > len(mask) and len(cores) > len(mask):
            found = f"{count} ranks of {host} are bound to {len(mask)} core{'s' * (len(mask) > 1)} together"
            return Check("binding", FAIL, found, "mpirun --bind-to none, or srun --cpu-bind=cores")
        idle = (ranks[0]["host_cores"] or 0) - len(cores)
        if len(cores) == 1 < len(ranks) and idle:
            found = f"all {len(ranks)} ranks of {host} on 1 core of {idle + 1}"
            return Check("binding", FAIL, found, "mpirun --bind-to none, or srun --cpu-bind=cores")
    threads = {found["threads"] for found in facts["ranks"]}
    return Check("binding", OK, f"{'/'.join(map(str, sorted(threads)))} BLAS thread a rank, masks don't collide")


def software(facts: Facts) -> Check:
    """Whether all ranks run the same program."""
    first = facts["ranks"][0]
    for rank, found in enumerate(facts["ranks"]):
        for key, value in found["software"].items():
            if value != first["software"][key]:
                told = f"{key} is {value} for rank {rank} on {found['host']}, {first['software'][key]} for rank 0"
                return Check(
                    "software", FAIL, told, "give all nodes one environment, on a shared file system or staged"
                )
    return Check("software", OK, f"dpcnn {first['software']['dpcnn']}, Python {first['software']['python']} everywhere")


def numerics(facts: Facts) -> Check:
    """Whether all ranks compute the same bits."""
    lines = differences([(found["host"], found["numerics"]) for found in facts["ranks"]])
    if lines:
        return Check("numerics", FAIL, lines[0], lines[-1])
    first = facts["ranks"][0]["numerics"]
    return Check("numerics", OK, f"NumPy {first['numpy']}, {first['blas']} everywhere")


def speed(facts: Facts) -> Check:
    """Whether all ranks compute about as fast."""
    speeds = [found["gflops"] for found in facts["ranks"]]
    usual, slowest = median(speeds), int(np.argmin(speeds))
    if speeds[slowest] < SLOW_RANK * usual:
        found = f"rank {slowest} on {facts['ranks'][slowest]['host']} at {speeds[slowest]:g} of {usual:g} GFLOP/s"
        return Check("speed", WARN, found, "all wait for it: look what else runs there, or leave that node out")
    return Check("speed", OK, f"{min(speeds):g} to {max(speeds):g} GFLOP/s a rank (float32 matrices)")


def memory(facts: Facts) -> Check:
    """Whether each host has enough memory for its ranks."""
    least = ("", float("inf"))
    for host, ranks in by_host(facts):
        each = min(found["memory_mb"] for found in ranks) / len(ranks)
        least = min(least, (host, each), key=lambda item: item[1])
    host, each = least
    if each < RANK_MB:
        advice = "fewer ranks a node, or ask for more memory: --mem-per-cpu=1G"
        return Check("memory", FAIL, f"{each:.0f} MB a rank on {host}; simple-cnn wants {RANK_MB}", advice)
    return Check("memory", OK, f"{each:,.0f} MB a rank at least")


def shared_memory(facts: Facts) -> Check:
    """Whether the ranks of a host see one copy of data and parameters."""
    if facts["apart"]:
        advice = "works, but slower and with a copy a rank: run all ranks of a node in one container"
        return Check("shared memory", WARN, facts["apart"].removeprefix("warning: "), advice)
    return Check("shared memory", OK, "one copy a node")


def output(facts: Facts) -> Check:
    """Whether runs can be written where they are to go."""
    found = facts["output"]
    folder = found["folder"]
    if found["fault"]:
        return Check("output", FAIL, f"{folder}: {found['fault']}", "give another --out")
    if found["free_mb"] < LEAST_FREE_MB:
        return Check("output", FAIL, f"{folder}: {found['free_mb']} MB free", "make room, or give another --out")
    unseen = [rank for rank, seen in enumerate(found["seen"]) if not seen]
    if unseen:
        host = facts["ranks"][unseen[0]]["host"]
        told = f"{folder}: rank {unseen[0]} on {host} does not see what rank 0 writes"
        return Check("output", WARN, told, "a job that goes on elsewhere won't find its run: use a shared file system")
    return Check("output", OK, f"{folder}: written, moved in one step, {found['free_mb']:,} MB free")


def locks(facts: Facts) -> Check:
    """Whether the output's file system has locks, which other HDF5 programs want."""
    if not facts["output"]["locks"] and not facts["output"]["fault"]:
        advice = "dpcnn needs none; for other HDF5 programs set HDF5_USE_FILE_LOCKING=FALSE"
        return Check("file locks", WARN, f"none on {facts['output']['folder']}", advice)
    return Check("file locks", OK, "there, and not needed")


def data(facts: Facts) -> Check:
    """Whether the data set is whole, and the same everywhere."""
    found = facts["data"]
    fault = next(filter(None, found["faults"]), None)
    if fault:
        return Check("data", FAIL, fault, "python -m dpcnn.data fetch|prepare, or give --data")
    if len(set(found["checksums"])) > 1:
        return Check("data", FAIL, f"{found['name']}: ranks see different sets", "give all nodes the same files")
    return Check("data", OK, f"{found['name']}: every shard has its checksum")


def network(facts: Facts) -> Check:
    """How fast the ranks talk to each other, and what that means for a step."""
    if not facts["links"]:
        return Check("network", OK, "one rank: nothing to send")
    far = [link for link in facts["links"] if not link["near"]] or facts["links"]
    slow = max(far, key=lambda link: link["latency"])
    rate = min(link["bytes_per_second"] for link in far)
    told = f"{1e6 * slow['latency']:.0f} us, {rate / 1e9:.2f} GB/s"
    if far[0]["near"]:
        told += " within the node"
    else:
        size = Config().network((28, 28, 1), 10).size
        told += f" between nodes: {1e3 * 2 * 4 * size / rate:.0f} ms a step of simple-cnn"
    if slow["latency"] > SLOW_LATENCY:
        return Check(
            "network", WARN, told, f"slow to {slow['host']}: ranks may outnumber cores, or the network is a spare one"
        )
    return Check("network", OK, told)


def progress(facts: Facts) -> Check:
    """Whether MPI works on while a rank computes. Nothing depends on it: dpcnn's exchange does not overlap."""
    hidden = facts["hidden"]
    if len(facts["ranks"]) == 1:
        return Check("progress", OK, "one rank: nothing to send")
    return Check("progress", OK, f"{hidden:.0%} of a nonblocking sum goes on beside computing; dpcnn needs none of it")


def heartbeats(facts: Facts) -> Check:
    """Whether hangs will be noticed."""
    if facts["unwatched"]:
        advice = "open UDP between the nodes, or set the scheduler's time limit with care"
        return Check("heartbeats", WARN, facts["unwatched"].removeprefix("warning: "), advice)
    return Check("heartbeats", OK, "reach rank 0")


def time_left(facts: Facts) -> Check:
    """Whether the job's end is known."""
    environment: Mapping[str, str] = facts["environment"]
    in_job = any(name.startswith(("SLURM_JOB_ID", "PBS_JOBID", "OAR_JOB")) for name in environment)
    try:
        end = job_end(environment, facts["now"])
    except ConfigError as error:
        return Check("time", FAIL, str(error), "unset it")
    if end is None and in_job:
        return Check("time", WARN, "the scheduler tells no end of this job", "give --walltime, or set DPCNN_JOB_END")
    if end is None:
        return Check("time", OK, "no batch job")
    left = end - facts["now"]
    if left < 120:
        return Check("time", WARN, f"{left:.0f} s left in this job", "ask for more time")
    return Check("time", OK, f"{left / 60:.0f} minutes left in this job")


if __name__ == "__main__":
    sys.exit(main())
