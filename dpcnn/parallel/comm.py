"""The ranks of a run, and the few operations between them that training needs.

:class:`Communicator` has them by MPI; :class:`SerialComm` is the same for one rank. Methods ending in ``_obj`` carry
JSON, the others NumPy arrays. A *shard* is a rank's part of a vector, ``bounds[rank]`` to ``bounds[rank + 1]``.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.timing import Timer
from dpcnn.errors import KINDS, DpcnnError, LaunchError

Runs = tuple[Sequence[int], Sequence[int]]
T = TypeVar("T")

TAGS = 32_767
"""The largest tag that every MPI library has."""

PRETENDED = "DPCNN_PRETEND_NODES"
"""Environment variable for tests: ranks of one machine as nodes of so many ranks each, "2,1,1"."""


@dataclass(frozen=True)
class Death:
    """The death of some ranks.

    Attributes:
        ranks: the numbers that they had when the job started.
        left: how many ranks live.
        seconds: from the time when this rank noticed to the end of the next transaction.
    """

    ranks: Sequence[int]
    left: int
    seconds: float


class SerialComm:
    """One rank, no MPI.

    Attributes:
        rank, size: this rank's number, and how many ranks there are.
        members: of each rank, the number that it had when the job started.
        library: the name and version of the MPI library.
        survives: whether the other ranks go on when one dies: see :mod:`dpcnn.parallel.survival`.
        repeated: whether the action at hand has been begun before, by ranks of which some have died since.
        deaths: the deaths so far.
    """

    rank, size = 0, 1
    members: Sequence[int] = (0,)
    survives = False
    repeated = False
    deaths: Sequence[Death] = ()

    def __init__(self, library: str = "no MPI library") -> None:
        self.library = library

    def transact(self, action: Callable[[], T], timer: Timer | None = None) -> T:
        """Do an action on all ranks, and return its result on this rank, once all have done it.

        Ranks that survive the death of others repeat the action. So it reads the state committed before it, and writes
        only memory that is of no use without its result, or data that may be written twice. Its last operation lets all
        ranks know that all have done their part, as an allgather does. ``timer`` counts the time until all agree as
        waiting.
        """
        return action()

    def on_death(self, make: Callable[[], None]) -> None:
        """From here on, call ``make`` after each death, before the action is repeated: what depends on the number of
        ranks is made anew there."""

    def forget(self) -> None:
        """Forget the deaths so far, and what :meth:`on_death` was given: another run begins."""

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

    def irecv(self, receive: Array, received: Runs) -> None:
        """Begin to receive: one half of :meth:`alltoall`. ``receive`` is complete after :meth:`wait`.

        Every rank calls it before :meth:`isend`. What an exception has left of an earlier exchange is never received.
        """
        self._expected = receive, received

    def isend(self, send: Array, sent: Runs) -> None:
        """Begin to send: the other half. ``send`` must not change before :meth:`wait` returns."""
        self._ready = send, sent

    def wait(self) -> None:
        """Wait for the messages of :meth:`irecv` and :meth:`isend`, which every rank has called once each."""
        self.alltoall(*self._ready, *self._expected)  # without messages on their way, all is done here

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

    def leave(self, status: int) -> int:
        """The end of the command on every rank, with this exit status, which is returned."""
        return status

    def depart(self) -> None:
        """The end of a process that did not begin as a command: nothing here may be called any more."""

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

    def __init__(self, mpi: Any, comm: Any, node: Any = None) -> None:
        """``node``: the communicator of the ranks of ``comm`` that share memory with this one, if it is known."""
        SerialComm.__init__(self, library_version(mpi))
        self._mpi, self._comm = mpi, comm
        self._requests: list[Any] = []
        self._lost: list[Any] = []
        self._tag = 0
        self.rank, self.size = comm.rank, comm.size
        self.members: Sequence[int] = range(self.size)
        self._node = Communicator(mpi, node) if node else None

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

    def irecv(self, receive: Array, received: Runs) -> None:
        self._lost += self._requests  # an exception came before their end: MPI may still use their memory
        self._requests, self._tag = [], self._tag % TAGS + 1
        elements = receive.ravel()
        for rank, (count, place) in enumerate(zip(*received, strict=True)):
            if count:
                self._requests.append(self._comm.Irecv(elements[place : place + count], rank, self._tag))

    def isend(self, send: Array, sent: Runs) -> None:
        elements = send.ravel()
        for rank, (count, start) in enumerate(zip(*sent, strict=True)):
            if count:
                self._requests.append(self._comm.Isend(elements[start : start + count], rank, self._tag))

    def wait(self) -> None:
        for request in self._requests:  # one by one: if one fails, Open MPI's Waitall frees others that have not ended
            request.Wait()
        self._requests.clear()

    def sendrecv(self, send: Array, receive: Array, partner: int) -> None:
        self._comm.Sendrecv(send, partner, recvbuf=receive, source=partner, recvtag=0)

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
        self._node = Communicator(self._mpi, self._mpi.COMM_SELF)

    def finalize(self) -> None:
        self._mpi.Finalize()

    def abort(self, status: int) -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        time.sleep(0.2)  # the launcher passes on what was printed before it kills
        self._comm.Abort(status)
        os._exit(status)


def by_node(mpi: Any, comm: Any) -> tuple[Any, Any]:
    """The ranks of ``comm``, numbered so that those of a host follow each other; and those that share its memory."""
    node = split_nodes(mpi, comm)
    (first,) = node.Get_group().Translate_ranks([0], comm.Get_group())
    return comm.Split(0, key=first * comm.size + comm.rank), node


def split_nodes(mpi: Any, comm: Any) -> Any:
    """The communicator of the ranks of ``comm`` that share memory with this one."""
    pretended = os.environ.get(PRETENDED)
    if not pretended:
        return comm.Split_type(mpi.COMM_TYPE_SHARED)
    words = pretended.split(",")
    counts, world = [int(word) for word in words if word.isdecimal() and len(word) < 10], mpi.COMM_WORLD
    if sum(counts) != world.size or min(counts) < 1 or len(counts) < len(words):
        raise LaunchError(f"{PRETENDED}={pretended}: expected {world.size} ranks in all, as in 2,1; change or unset it")
    return comm.Split(np.repeat(np.arange(len(counts)), counts)[world.rank])


def library_version(mpi: Any) -> str:
    """The MPI library's name and version: "Open MPI v5.0.11", "MPICH 5.0.2"."""
    first_line = mpi.Get_library_version().strip("\0 \n").splitlines()[0]
    return re.sub(r"\s+", " ", first_line.split(",")[0].replace("Version:", "")).strip()
