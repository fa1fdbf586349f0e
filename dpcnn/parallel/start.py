"""The start of MPI: the one file that imports mpi4py."""

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import Launch, check_limits, detect, mismatch
from dpcnn.parallel.mpi import Communicator, by_node, library_version
from dpcnn.parallel.survival import ENABLED, SETTINGS
from dpcnn.parallel.ulfm import UlfmCommunicator

TRANSPORTS = "OMPI_MCA_btl"
"""Environment variable of Open MPI: the transports that it may use between ranks."""

RELEASED = 0.2
"""Seconds in which Slurm lets all ranks out of MPI_Init, one a little before another. Open MPI 5.0 crashes if a message
reaches a rank that is still in it: https://github.com/open-mpi/ompi/issues/12495."""


def world() -> SerialComm:
    """All ranks of this job, on a communicator of their own; those of a node are numbered in a row.

    Raises:
        LaunchError: a launcher asked for several ranks, but this process sees itself alone.
    """
    launch = detect(os.environ)
    check_limits()
    os.environ.setdefault("HOME", os.path.expanduser("~"))  # without it, Open MPI ends the process in MPI_Init
    mpi = _load_mpi(launch)
    if mpi is None:
        return SerialComm()
    survives = _survives(os.environ)
    if not mpi.Is_initialized():
        _initialise(mpi, launch, survives)
        if launch and launch.family == "Slurm" and launch.size > 1:
            time.sleep(RELEASED)
    if launch and launch.size > 1 and mpi.COMM_WORLD.size == 1:
        raise mismatch(launch, library_version(mpi), _library_path())
    mpi.pickle.__init__(lambda value: json.dumps(value).encode(), lambda data: json.loads(bytes(data)))
    return UlfmCommunicator(mpi) if survives else Communicator(mpi, *by_node(mpi, mpi.COMM_WORLD))


def _survives(environment: Mapping[str, str]) -> bool:
    """Whether Open MPI was started so that it survives the death of ranks."""
    return environment.get(ENABLED, "").lower() in ("1", "true", "yes", "enabled")


def _initialise(mpi: Any, launch: Launch | None, survives: bool) -> None:
    """MPI_Init; a process that nobody launched needs no transport but that to itself.

    So Open MPI does not search for network cards, which takes a second, and leaves no shared memory in /dev/shm behind.
    """
    if survives:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        mpi.Init_thread(mpi.THREAD_FUNNELED)  # with more, TCP can block itself while it reports a death
        return
    if launch:
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        return
    before = os.environ.get(TRANSPORTS)
    os.environ[TRANSPORTS] = "self"
    mpi.Init_thread(mpi.THREAD_MULTIPLE)
    del os.environ[TRANSPORTS]  # jobs that this process starts need theirs
    if before is not None:
        os.environ[TRANSPORTS] = before


def _load_mpi(launch: Launch | None) -> Any:
    """mpi4py's MPI, not yet initialised, or None where there is no MPI library and no need of one."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, not _survives(os.environ)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # what mpi4py raises depends on how it was built
        if launch and launch.size > 1:
            raise mismatch(launch, "no MPI library", "anywhere") from None
        return None
    if launch and launch.size > 1 and launch.family == "Open MPI" and "Open MPI" not in library_version(MPI):
        raise mismatch(launch, library_version(MPI), _library_path())  # MPI_Init would abort
    return MPI


def _library_path() -> str:
    """The file of the MPI library that this process has loaded, as Linux tells it."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "an unknown place"
    found = re.search(r"\S*/libmpi[\w.]*\.so\S*", maps)
    return found.group() if found else "an unknown place"
