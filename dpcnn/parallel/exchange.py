"""The exchange: every rank's gradient sums in, the updated parameters out.

An exchange is used once a step, in this order: :meth:`~Exchange.rows` says which subtrees of the
step's microbatches this rank adds up, and where to; :meth:`~Exchange.sum` combines all ranks' rows
and gives the elements of the sum in ``part``; the caller updates ``vector[part]``; and
:meth:`~Exchange.share` lets every rank see the whole of it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.parallel.comm import Alone
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.split import Node, shares, subtrees, tree_sum

Vector = NDArray[Any]


class Exchange:
    """What all exchanges have in common: the split of leaves and of elements.

    Attributes:
        vector: (size,) float32, the parameters; every rank may read all of it between ``share`` and
            the next ``sum``, and write ``vector[part]`` between ``sum`` and ``share``.
        bounds: of the ranks' parts.
        part: this rank's part.
    """

    vector: Vector

    def __init__(self, comm: Alone, size: int) -> None:
        self.comm, self.size = comm, size
        self.bounds = shares(size, comm.size)
        self.part = slice(self.bounds[comm.rank], self.bounds[comm.rank + 1])

    def rows(self, leaves: int) -> list[tuple[Node, Vector]]:
        """The subtrees of tree(0, leaves) that are this rank's to add up, each with its (size,) row."""
        raise NotImplementedError

    def sum(self, leaves: int) -> Vector:
        """All ranks' rows, added up: the elements of ``part``. Valid until the next step."""
        raise NotImplementedError

    def share(self) -> None:
        """Let every rank see every rank's part of ``vector``."""
        raise NotImplementedError

    def collect(self, part: Vector) -> Vector | None:
        """A whole (size,) vector of every rank's part of it, on rank 0; None elsewhere."""
        return self.comm.gather_parts(part, self.bounds)

    def spread(self, whole: Vector | None, part: Vector) -> None:
        """The reverse of :meth:`collect`."""
        self.comm.scatter_parts(whole, part, self.bounds)


class SharedExchange(Exchange):
    """The sum along the tree of :mod:`dpcnn.parallel.split`, for ranks that share memory.

    All rows and the one copy of the parameters are visible to all: each rank adds up its part of
    everybody's rows, in place.
    """

    def __init__(self, comm: Alone, size: int) -> None:
        super().__init__(comm, size)
        self.vector = shared_array(comm, (size,), np.float32)
        self._rows: list[Vector] = []  # by row number: (ranks, size)

    def rows(self, leaves: int) -> list[tuple[Node, Vector]]:
        nodes = owned(leaves, self.comm.size)
        while len(self._rows) < max(map(len, nodes)):
            self._rows.append(shared_array(self.comm, (self.comm.size, self.size), np.float32))
        mine = nodes[self.comm.rank]
        return [(node, rows[self.comm.rank]) for node, rows in zip(mine, self._rows, strict=False)]

    def sum(self, leaves: int) -> Vector:
        self.comm.barrier()  # all rows are full, and nobody reads the parameters any more
        known = {
            node: rows[rank, self.part]
            for rank, theirs in enumerate(owned(leaves, self.comm.size))
            for node, rows in zip(theirs, self._rows, strict=False)
        }
        return tree_sum((0, leaves), known.get, add_into_left)

    def share(self) -> None:
        self.comm.barrier()


class MessageExchange(Exchange):
    """The same sum, the same bits, by messages: for ranks on several nodes."""

    def __init__(self, comm: Alone, size: int) -> None:
        super().__init__(comm, size)
        self.vector = np.zeros(size, np.float32)
        self._rows: list[Vector] = []  # by row number: (size,)
        self._received: list[Vector] = []  # by row number: (ranks, width of this rank's part)

    def rows(self, leaves: int) -> list[tuple[Node, Vector]]:
        nodes = owned(leaves, self.comm.size)[self.comm.rank]
        while len(self._rows) < len(nodes):
            self._rows.append(np.empty(self.size, np.float32))
        return list(zip(nodes, self._rows, strict=False))

    def sum(self, leaves: int) -> Vector:
        nodes = owned(leaves, self.comm.size)
        known: dict[Node, Vector] = {}
        for number in range(max(map(len, nodes))):
            givers = [number < len(theirs) for theirs in nodes]
            if len(self._received) == number:
                width = self.part.stop - self.part.start
                self._received.append(np.empty((self.comm.size, width), np.float32))
            send = self._rows[number] if givers[self.comm.rank] else np.empty(0, np.float32)
            self.comm.alltoall_parts(send, self._received[number], self.bounds, givers)
            for rank, theirs in enumerate(nodes):
                if givers[rank]:
                    known[theirs[number]] = self._received[number][rank]
        return tree_sum((0, leaves), known.get, add_into_left)

    def share(self) -> None:
        self.comm.allgather_parts(self.vector, self.bounds)


class AllreduceExchange(Exchange):
    """One MPI_Allreduce; every rank updates everything. The last bits depend on the ranks."""

    def __init__(self, comm: Alone, size: int) -> None:
        super().__init__(comm, size)
        self.part = slice(0, size)
        self.vector = np.zeros(size, np.float32)
        self._total = np.empty(size, np.float32)
        self._rows: list[Vector] = []

    def rows(self, leaves: int) -> list[tuple[Node, Vector]]:
        nodes = owned(leaves, self.comm.size)[self.comm.rank]
        self._rows = [*self._rows, *(np.empty(self.size, np.float32) for _ in nodes[len(self._rows) :])]
        return list(zip(nodes, self._rows, strict=False))

    def sum(self, leaves: int) -> Vector:
        self._total[...] = 0
        for _, row in self.rows(leaves):
            self._total += row
        self.comm.allreduce(self._total)
        return self._total

    def share(self) -> None:
        """Nothing to do: every rank has updated the whole."""

    def collect(self, part: Vector) -> Vector | None:
        return part if self.comm.rank == 0 else None

    def spread(self, whole: Vector | None, part: Vector) -> None:
        if whole is not None:
            part[...] = whole
        self.comm.broadcast(part)


def exact(comm: Alone, size: int) -> Exchange:
    """The exchange with the same bits on any number of ranks: in memory on one node, else by messages."""
    one_node = comm.node().size == comm.size
    return SharedExchange(comm, size) if one_node else MessageExchange(comm, size)


EXCHANGES = {"exact": exact, "allreduce": AllreduceExchange}


@cache
def owned(leaves: int, ranks: int) -> Sequence[list[Node]]:
    """For each rank, the subtrees of tree(0, leaves) that it adds up."""
    bounds = shares(leaves, ranks)
    return [subtrees(leaves, bounds[rank], bounds[rank + 1]) for rank in range(ranks)]


def add_into_left(left: Vector, right: Vector) -> Vector:
    """left + right, in the memory of left."""
    left += right
    return left
