"""The ranks of a Python script or session, and how the job ends."""

import atexit
import os
import sys
from functools import cache
from types import TracebackType

from dpcnn.cli import FAULT, INTERRUPTED
from dpcnn.errors import DpcnnError
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import detect
from dpcnn.parallel.shared import share_or_part
from dpcnn.parallel.start import world


@cache
def ranks() -> SerialComm:
    """All ranks of the job that a launcher has started this process in; without a launcher, this process, without MPI.

    The first call starts MPI, on every rank. From then on, an exception that ends one rank ends the whole job.

    Raises:
        LaunchError: the launcher does not match the MPI library.
    """
    if detect(os.environ) is None:
        return SerialComm()
    comm = world()
    sys.excepthook = Hook(comm)
    atexit.register(comm.depart)
    warning = comm.transact(lambda: share_or_part(comm))
    if warning and comm.rank == 0:
        print(warning, file=sys.stderr)
    return comm


class Hook:
    """Ends the job when an exception ends this rank: the other ranks would wait for it."""

    def __init__(self, comm: SerialComm) -> None:
        self._comm, self._before = comm, sys.excepthook

    def __call__(self, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        agreed = isinstance(error, DpcnnError) and error.agreed  # then all ranks end by it
        if self._comm.rank == 0 or not agreed:
            self._before(kind, error, where)
        if not agreed:
            self._comm.abort(INTERRUPTED if kind is KeyboardInterrupt else FAULT)
