"""Verdicts on the facts that dpcnn.doctor collects, as pure functions."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from dpcnn.base.fields import digits
from dpcnn.base.numerics import differences
from dpcnn.base.text import count_of
from dpcnn.cluster.stopping import job_end
from dpcnn.config import Config
from dpcnn.errors import ConfigError

OK, WARN, FAIL = "OK", "WARN", "FAIL"

RANK_MB = 300  # memory of a rank with the recipe simple-cnn
LEAST_FREE_MB = 500  # on the output's file system
SLOW_LATENCY = 1e-3  # seconds
SLOW_RANK = 0.6  # of the median speed

Facts = dict[str, Any]


class Check(NamedTuple):
    """A check: its name, the verdict, the finding, and the advice if the verdict is not OK."""

    name: str
    verdict: str
    found: str
    advice: str = ""


def judge(facts: Facts) -> list[Check]:
    """All verdicts, in the order of display."""
    checks = (
        launcher, rank_count, binding, software, numerics, speed, memory, shared_memory, output, locks, data,
        network, progress, heartbeats, survival, time_left,
    )  # fmt: skip
    return [check(facts) for check in checks]


def launcher(facts: Facts) -> Check:
    """Whether the launcher matches the MPI library."""
    alone = [number for number, rank in enumerate(facts["ranks"]) if rank["asked"] > rank["size"]]
    families = {rank["launcher"] or "no launcher" for rank in facts["ranks"]}
    line = f"{facts['mpi']}; started by {', '.join(sorted(families))}"
    if alone:
        asked = facts["ranks"][alone[0]]["asked"]
        return Check("launcher", FAIL, f"{line}: {asked} processes, each alone", "start with that library's own mpirun")
    return Check("launcher", OK, line)


def by_node(facts: Facts) -> Iterator[tuple[str, list[Facts]]]:
    """The name of each node, and the facts of its ranks."""
    for host in dict.fromkeys(rank["host"] for rank in facts["ranks"]):
        yield host, [rank for rank in facts["ranks"] if rank["host"] == host]


def rank_count(facts: Facts) -> Check:
    """Whether the job has as many ranks as the scheduler's tasks, and at most one per core."""
    size, environment = len(facts["ranks"]), facts["environment"]
    per_node = ", ".join(f"{len(ranks)} on {host}" for host, ranks in by_node(facts))
    tasks = environment.get("SLURM_NTASKS") or environment.get("PBS_NP")
    if tasks and digits(tasks) not in (None, size):
        return Check("ranks", WARN, f"{size}, but the job has {tasks} tasks", "give -n, or leave it to the scheduler")
    for host, ranks in by_node(facts):
        cores = len(set().union(*(rank["cores"] for rank in ranks)))
        if len(ranks) > cores:
            shortage = f"{len(ranks)} ranks on {host} share {cores} cores"
            return Check("ranks", WARN, shortage, "use at most one rank per core: fewer ranks, or more nodes")
    return Check("ranks", OK, per_node)


def binding(facts: Facts) -> Check:
    """Whether the ranks of a node compete for cores."""
    for host, ranks in by_node(facts):
        cores = set().union(*(rank["cores"] for rank in ranks))
        threads = sum(rank["threads"] for rank in ranks)
        most = max(rank["threads"] for rank in ranks)
        if most > 1 and threads > len(cores):
            conflict = f"{len(ranks)} ranks x {most} BLAS threads on {len(cores)} cores of {host}"
            return Check("binding", FAIL, conflict, "OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1")
        masks = Counter(tuple(rank["cores"]) for rank in ranks)
        mask, count = max(masks.items(), key=lambda item: item[1] / len(item[0]))
        if count > len(mask) and len(cores) > len(mask):
            conflict = f"{count} ranks of {host} are bound to {count_of(len(mask), 'core')} together"
            return Check("binding", FAIL, conflict, "mpirun --bind-to none, or srun --cpu-bind=cores")
        idle = (ranks[0]["host_cores"] or 0) - len(cores)
        if len(cores) == 1 < len(ranks) and idle:
            conflict = f"all {len(ranks)} ranks of {host} on 1 core of {idle + 1}"
            return Check("binding", FAIL, conflict, "mpirun --bind-to none, or srun --cpu-bind=cores")
    threads = {rank["threads"] for rank in facts["ranks"]}
    return Check("binding", OK, f"{'/'.join(map(str, sorted(threads)))} BLAS thread per rank, masks do not overlap")


def software(facts: Facts) -> Check:
    """Whether all ranks run the same program."""
    first = facts["ranks"][0]
    for rank, record in enumerate(facts["ranks"]):
        for key, value in record["software"].items():
            if value != first["software"][key]:
                mismatch = f"{key} is {value} for rank {rank} on {record['host']}, {first['software'][key]} for rank 0"
                return Check(
                    "software", FAIL, mismatch, "give all nodes one environment, on a shared file system or staged"
                )
    return Check("software", OK, f"dpcnn {first['software']['dpcnn']}, Python {first['software']['python']} everywhere")


def numerics(facts: Facts) -> Check:
    """Whether all ranks compute the same bits."""
    lines = differences([(rank["host"], rank["numerics"]) for rank in facts["ranks"]])
    if lines:
        return Check("numerics", FAIL, lines[0], lines[-1])
    first = facts["ranks"][0]["numerics"]
    return Check("numerics", OK, f"NumPy {first['numpy']}, {first['blas']} everywhere")


def speed(facts: Facts) -> Check:
    """Whether all ranks compute about as fast."""
    speeds = [rank["gflops"] for rank in facts["ranks"]]
    usual, slowest = median(speeds), int(np.argmin(speeds))
    if speeds[slowest] < SLOW_RANK * usual:
        slow = f"rank {slowest} on {facts['ranks'][slowest]['host']} at {speeds[slowest]:g} of {usual:g} GFLOP/s"
        return Check("speed", WARN, slow, "all wait for it: see what else runs there, or leave that node out")
    return Check("speed", OK, f"{min(speeds):g} to {max(speeds):g} GFLOP/s per rank (float32 matrices)")


def memory(facts: Facts) -> Check:
    """Whether each node has enough memory for its ranks."""
    least = ("", float("inf"))
    for host, ranks in by_node(facts):
        each = min(rank["memory_mb"] for rank in ranks) / len(ranks)
        least = min(least, (host, each), key=lambda item: item[1])
    host, each = least
    if each < RANK_MB:
        advice = "use fewer ranks per node, or request more memory: --mem-per-cpu=1G"
        return Check("memory", FAIL, f"{each:.0f} MB per rank on {host}; simple-cnn needs {RANK_MB}", advice)
    return Check("memory", OK, f"{each:,.0f} MB per rank at least")


def shared_memory(facts: Facts) -> Check:
    """Whether the ranks of a node share one copy of data and parameters."""
    if facts["apart"]:
        advice = "works, but slower and with one copy per rank: run all ranks of a node in one container"
        return Check("shared memory", WARN, facts["apart"].removeprefix("warning: "), advice)
    return Check("shared memory", OK, "one copy per node")


def output(facts: Facts) -> Check:
    """Whether runs can be written to their folder."""
    result = facts["output"]
    folder = result["folder"]
    if result["fault"]:
        return Check("output", FAIL, f"{folder}: {result['fault']}", "give another --out")
    if result["free_mb"] < LEAST_FREE_MB:
        return Check("output", FAIL, f"{folder}: {result['free_mb']} MB free", "make room, or give another --out")
    unseen = [rank for rank, seen in enumerate(result["seen"]) if not seen]
    if unseen:
        host = facts["ranks"][unseen[0]]["host"]
        fault = f"{folder}: rank {unseen[0]} on {host} does not see what rank 0 writes"
        return Check("output", WARN, fault, "a job on another node will not find its run: use a shared file system")
    return Check("output", OK, f"{folder}: written, moved in one step, {result['free_mb']:,} MB free")


def locks(facts: Facts) -> Check:
    """Whether the output's file system has locks, which other HDF5 programs need."""
    if not facts["output"]["locks"] and not facts["output"]["fault"]:
        advice = "dpcnn needs none; for other HDF5 programs set HDF5_USE_FILE_LOCKING=FALSE"
        return Check("file locks", WARN, f"none on {facts['output']['folder']}", advice)
    return Check("file locks", OK, "supported (not required)")


def data(facts: Facts) -> Check:
    """Whether the data set is complete, and the same on all ranks."""
    result = facts["data"]
    fault = next(filter(None, result["faults"]), None)
    if fault:
        return Check("data", FAIL, fault, "dpcnn data fetch|prepare, or give --data")
    if len(set(result["checksums"])) > 1:
        return Check("data", FAIL, f"{result['name']}: ranks see different sets", "give all nodes the same files")
    return Check("data", OK, f"{result['name']}: every shard has its checksum")


def network(facts: Facts) -> Check:
    """The speed of messages between the ranks, and its effect on a step."""
    if not facts["links"]:
        return Check("network", OK, "one rank: nothing to send")
    far = [link for link in facts["links"] if not link["near"]] or facts["links"]
    slow = max(far, key=lambda link: link["latency"])
    rate = min(link["bytes_per_second"] for link in far)
    rates = f"{1e6 * slow['latency']:.0f} us, {rate / 1e9:.2f} GB/s"
    if far[0]["near"]:
        rates += " within the node"
    else:
        size = Config().network((28, 28, 1), 10).size
        rates += f" between nodes: {1e3 * 2 * 4 * size / rate:.0f} ms per step of simple-cnn"
    if slow["latency"] > SLOW_LATENCY:
        return Check(
            "network", WARN, rates, f"slow to {slow['host']}: ranks may outnumber cores, or MPI uses the wrong network"
        )
    return Check("network", OK, rates)


def progress(facts: Facts) -> Check:
    """Whether MPI makes progress while a rank computes. dpcnn does not need it: it leaves messages to the system."""
    hidden = facts["hidden"]
    if len(facts["ranks"]) == 1:
        return Check("progress", OK, "one rank: nothing to send")
    return Check("progress", OK, f"{hidden:.0%} of a nonblocking sum overlaps with computing; dpcnn does not need it")


def heartbeats(facts: Facts) -> Check:
    """Whether hangs will be noticed."""
    if facts["unwatched"]:
        advice = "open UDP between the nodes, or set the scheduler's time limit with care"
        return Check("heartbeats", WARN, facts["unwatched"].removeprefix("warning: "), advice)
    return Check("heartbeats", OK, "reach rank 0")


def survival(facts: Facts) -> Check:
    """Whether a training in this job would survive the death of ranks; the batch scripts resume it if not."""
    return Check("survival", OK, "one rank" if len(facts["ranks"]) == 1 else facts["survival"])


def time_left(facts: Facts) -> Check:
    """Whether the end of the job is known."""
    environment: Mapping[str, str] = facts["environment"]
    in_job = any(name.startswith(("SLURM_JOB_ID", "PBS_JOBID", "OAR_JOB")) for name in environment)
    try:
        end = job_end(environment, facts["now"])
    except ConfigError as error:
        return Check("time", FAIL, str(error), "unset it")
    if end is None and in_job:
        return Check("time", WARN, "the scheduler gives no end of this job", "give --walltime, or set DPCNN_JOB_END")
    if end is None:
        return Check("time", OK, "no batch job")
    left = end - facts["now"]
    if left < 120:
        return Check("time", WARN, f"{left:.0f} s left in this job", "ask for more time")
    return Check("time", OK, f"{left / 60:.0f} minutes left in this job")


def screen(checks: Sequence[Check]) -> str:
    """A line for each check, and the advice below those that are not OK."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:<5} {check.name:<14} {check.found}")
        if check.verdict != OK:
            lines.append(f"{'':<20} -> {check.advice}")
    count = Counter(check.verdict for check in checks)
    return "\n".join([*lines, f"{count[OK]} OK, {count[WARN]} WARN, {count[FAIL]} FAIL"])
