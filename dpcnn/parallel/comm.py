"""The ranks of a run: the only file that uses MPI.

:class:`Communicator` has the few operations that training needs; :class:`SerialComm` is the same for
one rank without MPI. Methods ending in ``_obj`` carry small objects as JSON, the others carry
NumPy arrays. A *shard* is a rank's part of a vector, from ``bounds[rank]`` to
``bounds[rank + 1]``.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dpcnn.errors import KINDS, DpcnnError, LaunchError
from dpcnn.parallel.launch import Launch, check_limits, detect, mismatch

Array = NDArray[Any]
Runs = tuple[Sequence[int], Sequence[int]]

TRANSPORTS = "OMPI_MCA_btl"
"""Environment variable of Open MPI: the transports that it may use between ranks."""

PRETENDED = "DPCNN_PRETEND_NODES"
"""Environment variable for tests: ranks of one machine as nodes of so many ranks each, "2,1,1"."""


class SerialComm:
    """One rank, no MPI."""

    rank, size = 0, 1

    def __init__(self, library: str = "no MPI library") -> None:
        self.library = library

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def bitwise_or(self, flags: int) -> int:
        """The bitwise or of every rank's flags, the same on all."""
        return flags

    def broadcast_obj(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        return value

    def allgather_obj(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        return [value]

    def gather_obj(self, value: Any) -> list[Any] | None:
        """Every rank's value, in the order of ranks, on rank 0; None elsewhere."""
        return [value]

    def broadcast(self, array: Array) -> None:
        """Rank 0's array to all, in place."""

    def allgather(self, row: Array) -> Array:
        """Every rank's row, (size, *row.shape), on every rank."""
        return row[None]

    def allreduce(self, array: Array) -> None:
        """The sum of every rank's array, in place, in an order of MPI's choosing."""

    def alltoall(self, send: Array, sent: Runs, receive: Array, received: Runs) -> None:
        """Send each rank some of this rank's elements.

        Args:
            send: contiguous.
            sent: for each rank, how many elements it is given, and the first of them in ``send``.
            receive: contiguous; of the same type.
            received: for each rank, how many elements it gives, and the place of the first in ``receive``.
        """
        (((count,), (start,)), (_, (place,))) = sent, received
        receive.ravel()[place : place + count] = send.ravel()[start : start + count]

    def sendrecv(self, send: Array, receive: Array, partner: int) -> None:
        """Send an array to a rank, and receive one from it."""
        receive[...] = send

    def overlap_fraction(self, count: int) -> float:
        """The fraction of a nonblocking sum of ``count`` float64 numbers that overlaps with computing, 0 to 1."""
        return 0.0

    def gather_shards(self, shard: Array, bounds: Sequence[int]) -> Array | None:
        """The whole vector of all shards, on rank 0; None elsewhere."""
        return shard.copy()

    def scatter_shards(self, whole: Array | None, shard: Array, bounds: Sequence[int]) -> None:
        """Distribute rank 0's vector: each rank receives its shard."""
        shard[...] = whole

    def node(self) -> "SerialComm":
        """The ranks that share memory with this one."""
        return self

    def live_apart(self) -> None:
        """From now on, each rank is a node of its own."""

    def finalize(self) -> None:
        """The end of MPI, on every rank; nothing here may be called any more."""

    def abort(self, status: int) -> NoReturn:
        """End the whole job now, with this exit status."""
        os._exit(status)

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """A block that fails on every rank if it fails on any.

        Where a DpcnnError or an OSError leaves the block on any rank, every rank raises the first
        of them, in the order of ranks.
        """
        error: tuple[str, str] | None = None
        try:
            yield
        except DpcnnError as raised:
            error = type(raised).__name__, str(raised)
        except BrokenPipeError:
            raise
        except OSError as raised:
            error = "DpcnnError", f"{raised.filename or 'a file'}: {raised.strerror or raised}"
        if self.bitwise_or(error is not None):
            kind, message = next(found for found in self.allgather_obj(error) if found)
            agreed = KINDS[kind](message)
            agreed.agreed = True
            raise agreed from None


class Communicator(SerialComm):
    """The ranks of an MPI communicator."""

    def __init__(self, mpi: Any, comm: Any) -> None:
        super().__init__(library_version(mpi))
        self._mpi, self._comm = mpi, comm
        self.rank, self.size = comm.rank, comm.size
        self._node: Communicator | None = None

    def barrier(self) -> None:
        self._comm.Barrier()

    def bitwise_or(self, flags: int) -> int:
        everyone = np.empty(1, np.int64)
        self._comm.Allreduce(np.array([flags], np.int64), everyone, op=self._mpi.BOR)
        return int(everyone[0])

    def broadcast_obj(self, value: Any) -> Any:
        return self._comm.bcast(value)

    def allgather_obj(self, value: Any) -> list[Any]:
        return list(self._comm.allgather(value))

    def gather_obj(self, value: Any) -> list[Any] | None:
        values: list[Any] | None = self._comm.gather(value)
        return values

    def broadcast(self, array: Array) -> None:
        self._comm.Bcast(array)

    def allgather(self, row: Array) -> Array:
        rows = np.empty((self.size, *row.shape), row.dtype)
        self._comm.Allgather(row, rows)
        return rows

    def allreduce(self, array: Array) -> None:
        self._comm.Allreduce(self._mpi.IN_PLACE, array)

    def alltoall(self, send: Array, sent: Runs, receive: Array, received: Runs) -> None:
        self._comm.Alltoallv([send, sent], [receive, received])

    def sendrecv(self, send: Array, receive: Array, partner: int) -> None:
        self._comm.Sendrecv(send, partner, recvbuf=receive, source=partner)

    def overlap_fraction(self, count: int) -> float:
        send, receive, numbers = np.zeros(count), np.empty(count), np.ones(4096)
        self._comm.Allreduce(send, receive)
        started = time.perf_counter()
        self._comm.Allreduce(send, receive)
        alone = time.perf_counter() - started
        self._comm.Barrier()
        request = self._comm.Iallreduce(send, receive)
        started = time.perf_counter()
        while time.perf_counter() - started < 2 * alone:
            numbers.sum()
        started = time.perf_counter()
        request.Wait()
        left = time.perf_counter() - started
        return float(self._comm.bcast(max(0.0, 1 - left / max(alone, 1e-9))))

    def gather_shards(self, shard: Array, bounds: Sequence[int]) -> Array | None:
        whole = np.empty(bounds[-1], shard.dtype) if self.rank == 0 else None
        self._comm.Gatherv(shard, None if whole is None else [whole, (np.diff(bounds), bounds[:-1])])
        return whole

    def scatter_shards(self, whole: Array | None, shard: Array, bounds: Sequence[int]) -> None:
        self._comm.Scatterv(None if whole is None else [whole, (np.diff(bounds), bounds[:-1])], shard)

    def node(self) -> "Communicator":
        self._node = self._node or Communicator(self._mpi, split_nodes(self._mpi, self._comm))
        return self._node

    def live_apart(self) -> None:
        self._node = Communicator(self._mpi, self._comm.Split(self.rank))

    def finalize(self) -> None:
        self._mpi.Finalize()

    def abort(self, status: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.2)  # the launcher passes on what was printed before it kills
        self._comm.Abort(status)
        os._exit(status)


def world() -> SerialComm:
    """All ranks of this job, on a communicator of their own; those of a node are numbered in a row.

    Raises:
        LaunchError: a launcher asked for several ranks, but this process sees itself alone.
    """
    launch = detect(os.environ)
    check_limits(launch)
    mpi = _load_mpi(launch)
    if mpi is None:
        return SerialComm()
    if not mpi.Is_initialized():
        _initialise(mpi, launch)
    if launch and launch.size > 1 and mpi.COMM_WORLD.size == 1:
        raise mismatch(launch, library_version(mpi), _library_path())
    mpi.pickle.__init__(lambda value: json.dumps(value).encode(), lambda data: json.loads(bytes(data)))
    first = split_nodes(mpi, mpi.COMM_WORLD).bcast(mpi.COMM_WORLD.rank)  # the lowest rank of this node
    return Communicator(mpi, mpi.COMM_WORLD.Split(0, key=first * mpi.COMM_WORLD.size + mpi.COMM_WORLD.rank))


def _initialise(mpi: Any, launch: Launch | None) -> None:
    """MPI_Init; a process that nobody launched needs no transport but that to itself.

    So Open MPI does not search for network cards, which takes a second, and leaves no shared memory in /dev/shm behind.
    """
    if launch:
        mpi.Init_thread(mpi.THREAD_MULTIPLE)
        return
    before = os.environ.get(TRANSPORTS)
    os.environ[TRANSPORTS] = "self"
    mpi.Init_thread(mpi.THREAD_MULTIPLE)
    del os.environ[TRANSPORTS]  # jobs that this process starts need theirs
    if before is not None:
        os.environ[TRANSPORTS] = before


def split_nodes(mpi: Any, comm: Any) -> Any:
    """The communicator of the ranks of ``comm`` that share memory with this one."""
    pretended = os.environ.get(PRETENDED)
    if not pretended:
        return comm.Split_type(mpi.COMM_TYPE_SHARED)
    words = pretended.split(",")
    counts = [int(word) for word in words if word.isdecimal() and len(word) < 10]
    if sum(counts) != comm.size or min(counts) < 1 or len(counts) < len(words):
        raise LaunchError(f"{PRETENDED}={pretended}: expected {comm.size} ranks in all, as in 2,1; change or unset it")
    return comm.Split(np.repeat(np.arange(len(counts)), counts)[comm.rank])


def _load_mpi(launch: Launch | None) -> Any:
    """mpi4py's MPI, not yet initialised, or None where there is no MPI library and no need of one."""
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # what mpi4py raises depends on how it was built
        if launch and launch.size > 1:
            raise mismatch(launch, "no MPI library", "anywhere") from None
        return None
    if launch and launch.size > 1 and launch.family == "Open MPI" and "Open MPI" not in library_version(MPI):
        raise mismatch(launch, library_version(MPI), _library_path())  # MPI_Init would abort
    return MPI


def library_version(mpi: Any) -> str:
    """The MPI library's name and version: "Open MPI v5.0.11", "MPICH 5.0.2"."""
    first_line = mpi.Get_library_version().strip("\0 \n").splitlines()[0]
    return re.sub(r"\s+", " ", first_line.split(",")[0].replace("Version:", "")).strip()


def _library_path() -> str:
    """The file of the MPI library that this process has loaded, as Linux tells it."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "an unknown place"
    found = re.search(r"\S*/libmpi[\w.]*\.so\S*", maps)
    return found.group() if found else "an unknown place"
