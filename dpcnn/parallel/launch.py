"""The launcher of this process, as seen in the environment before MPI starts.

A launcher that does not match the MPI library starts N processes with a world of size 1 each, and
the job then trains N times. The launcher's variables reveal this.
"""

import os
import resource
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dpcnn.base.fields import digits
from dpcnn.errors import LaunchError

ADDRESS_SPACE = 640 << 20
"""The minimum of the bytes that a rank maps: libraries, MPI's shared memory, a small network."""

LEAST_FILES = 64
"""The minimum of the files that a rank may open: libraries, MPI's sockets, a small data set."""

OPEN_FILES = 1024
"""Files that suffice for a rank of a job of usual size: also for the heartbeats, and for a data set of many files."""

PASSED_ON = 0.2
"""Seconds in which a launcher passes on what a process has printed."""

LAUNCHERS = ("mpirun", "mpiexec", "prterun", "orterun", "srun", "slurmstepd")


class Launch(NamedTuple):
    """The request of a launcher.

    Attributes:
        family: the kind of the launcher: "Open MPI", "Hydra" (MPICH, Intel MPI), "MVAPICH",
            "Slurm" or "PMIx".
        rank: the rank of this process in the job.
        size: the number of processes of the job; ``rank + 1``, a lower bound, if the launcher does not give it.
    """

    family: str
    rank: int
    size: int


VARIABLES = (  # the innermost launcher first: mpirun under Slurm adds its own variables to Slurm's
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("Hydra", "PMI_RANK", "PMI_SIZE"),
    ("Hydra", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),  # of the step; a batch script has none
    ("PMIx", "PMIX_RANK", None),
)


def detect(environment: Mapping[str, str]) -> Launch | None:
    """The launcher's request, from its environment variables; None for a process started by hand."""
    for family, rank_name, size_name in VARIABLES:
        rank, size = digits(environment.get(rank_name, "")), digits(environment.get(size_name or rank_name, ""))
        if rank is not None and size is not None:
            return Launch(family, rank, size if size_name else rank + 1)
    return None


def check_limits() -> None:
    """Make sure that MPI can start under the limits of this process: otherwise it hangs or crashes.

    Raises:
        LaunchError: it can't.
    """
    least, _ = resource.getrlimit(resource.RLIMIT_AS)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = next((os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), "/tmp")
    problem = ""
    if least != resource.RLIM_INFINITY and least < ADDRESS_SPACE:
        problem = (
            f"the limit on address space, {least >> 20} MiB, is too low for MPI and NumPy; "
            f"raise it: ulimit -v {ADDRESS_SPACE >> 10} or more"
        )
    elif files != resource.RLIM_INFINITY and files < LEAST_FILES:
        problem = f"the limit on open files, {files}, is too low for MPI; raise it: ulimit -n {OPEN_FILES} or more"
    elif not _takes_files(folder):
        problem = f"{folder}: MPI can't make its temporary files there; set TMPDIR to a writable folder"
    if problem:
        raise LaunchError(problem)


def _takes_files(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def end_job(launch: Launch, status: int) -> None:
    """Let Hydra end the other processes of the job, although MPI has not started in this one.

    Other launchers do this when a process ends with a status other than 0. Under Hydra, the others would wait for this
    process in MPI_Init for ever. The message is that of PMI-1, by which MPICH's processes talk to Hydra.
    """
    descriptor = digits(os.environ.get("PMI_FD", ""))
    if launch.family != "Hydra" or launch.size == 1 or descriptor is None:
        return
    with suppress(OSError):
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            time.sleep(PASSED_ON)
            os.write(descriptor, f"cmd=abort exitcode={status}\n".encode())


def ancestors() -> list[tuple[int, str]]:
    """The processes above this one, nearest first, as (pid, path of the executable); Linux only."""
    processes, pid = [], os.getppid()
    while pid > 1:
        try:
            processes.append((pid, os.readlink(f"/proc/{pid}/exe")))
            line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        pid = int(line.rpartition(")")[2].split()[1])
    return processes


def descendants(pid: int) -> list[int]:
    """The processes below a process; Linux only."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            line = entry.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        children.setdefault(int(line.rpartition(")")[2].split()[1]), []).append(int(line.split()[0]))
    pids, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        pids += below
        waiting += below
    return pids


def launcher() -> tuple[int, str] | None:
    """The launcher above this process, as (pid, path), if it is visible."""
    return next(((pid, path) for pid, path in ancestors() if Path(path).name.startswith(LAUNCHERS)), None)


def usual_launcher() -> str:
    """The program that starts ranks here: mpirun, or srun in a Slurm allocation without mpirun."""
    alone = shutil.which("mpirun") is None and shutil.which("srun") is not None
    return "srun --mpi=pmix" if alone and "SLURM_JOB_ID" in os.environ else "mpirun"


def check_starter(command: str, launcher: str) -> None:
    """Make sure that this process is allowed to start ranks and can do it.

    Raises:
        LaunchError: it is one of several ranks itself, or the launcher does not exist.
    """
    launch = detect(os.environ)
    if launch and launch.size > 1:
        error = LaunchError(f"{command} starts the ranks itself: run it without the launcher of {launch.family}")
        error.speaker = launch.rank == 0
        raise error
    try:
        words = shlex.split(launcher)
    except ValueError as reason:
        raise LaunchError(f"--launcher: {reason} in {launcher!r}") from None
    if not words or shutil.which(words[0]) is None:
        raise LaunchError(
            f"--launcher: no {launcher or 'launcher'} on the PATH; load your MPI, or activate the environment"
        )


def mismatch(launch: Launch, library: str, library_path: str) -> LaunchError:
    """The error for processes that were started as one job but can't see each other."""
    above = launcher()
    started = f"{above[1]} ({launch.family})" if above else f"a launcher of the family {launch.family}"
    beside = Path(sys.executable).parent / "mpirun"
    if launch.family in ("Slurm", "PMIx"):
        advice = "use srun --mpi=pmix (srun --mpi=list shows the choices), or mpirun inside the allocation"
    elif beside.exists():
        advice = f"use {beside} -n {launch.size} {Path(sys.executable)} -m dpcnn.train"
    else:
        advice = "start it with the mpirun of that library, or rebuild mpi4py: pip install --no-binary=mpi4py mpi4py"
    error = LaunchError(
        f"{started} started {launch.size} processes, but mpi4py loaded {library} from {library_path}, "
        f"in which each is alone; {advice}"
    )
    error.speaker = launch.rank == 0
    return error
