"""Ranks as threads of one process: the real trainer on any number of ranks and nodes, without MPI's start-up."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from dpcnn.parallel.comm import SerialComm

LIMIT = 60.0  # seconds in which all ranks must meet: else they hang


class Aborted(Exception):
    """A rank has ended the whole job with an exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


class TensorBoardWriter:
    """Where the ranks of a communicator post what they have for each other."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=LIMIT)
        self.posted: list[Any] = [None] * size


class ThreadComm(SerialComm):
    """A rank among threads, with the operations of :class:`dpcnn.parallel.comm.Communicator`."""

    def __init__(self, rank: int, board: TensorBoardWriter, node: "ThreadComm | None" = None) -> None:
        super().__init__("threads")
        self.rank, self.size, self._board, self._node = rank, len(board.posted), board, node

    @contextmanager
    def _all(self, value: Any) -> Iterator[list[Any]]:
        """What every rank has posted; nobody goes on before all have read it."""
        self._board.posted[self.rank] = value
        self._board.barrier.wait()
        yield list(self._board.posted)
        self._board.barrier.wait()

    def barrier(self) -> None:
        self._board.barrier.wait()

    def bitwise_or(self, flags: int) -> int:
        with self._all(flags) as all_flags:
            return int(np.bitwise_or.reduce(all_flags))

    def broadcast_obj(self, value: Any) -> Any:
        with self._all(value) as values:
            return values[0]

    def allgather_obj(self, value: Any) -> list[Any]:
        with self._all(value) as values:
            return values

    def gather_obj(self, value: Any) -> list[Any] | None:
        with self._all(value) as values:
            return values if self.rank == 0 else None

    def broadcast(self, array: Any) -> None:
        with self._all(array) as arrays:
            array[...] = arrays[0]

    def allgather(self, row: Any) -> Any:
        with self._all(row) as rows:
            return np.stack(rows)

    def allreduce(self, array: Any) -> None:
        with self._all(array) as arrays:
            total = np.sum(arrays, axis=0, dtype=array.dtype)
        array[...] = total

    def alltoall(self, send: Any, sent: Any, receive: Any, received: Any) -> None:
        with self._all((send.ravel(), sent)) as posts:
            for (array, (counts, starts)), place in zip(posts, received[1], strict=True):
                count, start = counts[self.rank], starts[self.rank]
                receive.ravel()[place : place + count] = array[start : start + count]

    def gather_shards(self, part: Any, bounds: Sequence[int]) -> Any:
        with self._all(part) as parts:
            return np.concatenate(parts) if self.rank == 0 else None

    def scatter_shards(self, vector: Any, part: Any, bounds: Sequence[int]) -> None:
        with self._all(vector) as vectors:
            part[...] = vectors[0][bounds[self.rank] : bounds[self.rank + 1]]

    def node(self) -> "ThreadComm":
        return self._node or self

    def sendrecv(self, send: Any, receive: Any, partner: int) -> None:
        raise NotImplementedError("threads have no links of their own")

    def abort(self, status: int) -> NoReturn:
        self.fail()
        raise Aborted(status)

    def fail(self) -> None:
        """Let no other rank wait for this one any more."""
        self._board.barrier.abort()
        self.node()._board.barrier.abort()


def run_ranks(nodes: Sequence[int], function: Callable[[ThreadComm], Any]) -> list[Any]:
    """What ``function`` returns on each rank; ``nodes`` are the numbers of ranks of each node.

    Raises:
        The first exception of any rank, but for those of ranks that wait for one that has failed.
    """
    world, ranks = TensorBoardWriter(sum(nodes)), []
    for size in nodes:
        board = TensorBoardWriter(size)
        ranks += [ThreadComm(len(ranks) + local, world, ThreadComm(local, board)) for local in range(size)]
    results: list[Any] = [None] * len(ranks)
    errors: list[BaseException] = []

    def rank(comm: ThreadComm) -> None:
        try:
            results[comm.rank] = function(comm)
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:
            errors.append(error)
            comm.fail()

    threads = [threading.Thread(target=rank, args=(comm,)) for comm in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if world.barrier.broken:
        raise TimeoutError(f"the ranks have not met for {LIMIT} s")
    return results
