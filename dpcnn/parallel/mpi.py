"""The operations between ranks, by MPI."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from dpcnn.base import output
from dpcnn.base.arrays import Array
from dpcnn.errors import LaunchError
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import PASSED_ON
from dpcnn.parallel.layout import Runs

TAGS = 32_767
"""The largest tag that every MPI library has."""

PRETENDED = "DPCNN_PRETEND_NODES"
"""Environment variable for tests: ranks of one machine as nodes of so many ranks each, "2,1,1"."""


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
        for rank, part in parts(receive, received):
            self._requests.append(self._comm.Irecv(part, rank, self._tag))

    def isend(self, send: Array, sent: Runs) -> None:
        for rank, part in parts(send, sent):
            self._requests.append(self._comm.Isend(part, rank, self._tag))

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
        output.flush()
        time.sleep(PASSED_ON)
        self._comm.Abort(status)
        os._exit(status)


def parts(array: Array, runs: Runs) -> Iterator[tuple[int, Array]]:
    """Each rank to which a part of an array belongs, and the part."""
    elements = array.ravel()
    for rank, (count, start) in enumerate(zip(*runs, strict=True)):
        if count:
            yield rank, elements[start : start + count]


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
