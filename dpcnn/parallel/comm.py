"""The ranks of a run, and the few operations between them that training needs.

:class:`SerialComm` has them for one rank, and :class:`dpcnn.parallel.mpi.Communicator` by MPI. Methods ending in
``_obj`` carry JSON, the others NumPy arrays. A *shard* is a rank's part of a vector, ``bounds[rank]`` to
``bounds[rank + 1]``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn, TypeVar

from dpcnn.base.arrays import Array
from dpcnn.base.timing import Timer
from dpcnn.errors import KINDS, DpcnnError
from dpcnn.parallel.layout import Runs

T = TypeVar("T")


class Death(NamedTuple):
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
        error: tuple[str, str, bool] | None = None
        try:
            yield
        except DpcnnError as raised:
            error = type(raised).__name__, str(raised), raised.speaker
        except BrokenPipeError:
            raise
        except OSError as raised:
            error = "DpcnnError", f"{raised.filename or 'a file'}: {raised.strerror or raised}", True
        if self.bitwise_or(error is not None):
            kind, message, speaker = next(found for found in self.allgather_obj(error) if found)
            agreed = KINDS[kind](message)
            agreed.agreed, agreed.speaker = True, speaker
            raise agreed from None
