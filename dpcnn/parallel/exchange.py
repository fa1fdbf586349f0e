"""The exchange: every rank's gradient sums in, the part that this rank updates out.

An exchange is used once a step, in this order: :meth:`~Exchange.rows` says which subtrees of the
step's microbatches this rank adds up, and where to; :meth:`~Exchange.sum` combines all ranks'
rows and gives the sum's elements in ``part``; the caller updates its part of the parameters, and
:meth:`~Exchange.share` hands that to all.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.parallel.comm import Alone
from dpcnn.parallel.split import Node, shares, subtrees, tree_sum

Vector = NDArray[Any]


class Exchange:
    """What both exchanges have in common: the split, and the rows.

    Attributes:
        bounds: of the parts of the vector that the ranks update.
        part: this rank's.
    """

    bounds: list[int]

    def __init__(self, comm: Alone, size: int) -> None:
        self.comm, self.size = comm, size
        self._rows: list[Vector] = []

    @property
    def part(self) -> slice:
        return slice(*self.bounds[self.comm.rank : self.comm.rank + 2])

    def rows(self, leaves: int) -> list[tuple[Node, Vector]]:
        """The subtrees of tree(0, leaves) that are this rank's to add up, each with its (size,) row."""
        nodes = owned(leaves, self.comm.size)[self.comm.rank]
        while len(self._rows) < len(nodes):
            self._rows.append(np.empty(self.size, np.float32))
        return list(zip(nodes, self._rows, strict=False))

    def sum(self, leaves: int) -> Vector:
        """All ranks' rows, added up: the elements of ``part``. Valid until the next step."""
        raise NotImplementedError

    def share(self, vector: Vector) -> None:
        """Every rank's part of ``vector``, to all, in place."""
        raise NotImplementedError

    def collect(self, part: Vector) -> Vector | None:
        """A whole (size,) vector of every rank's part, on rank 0; None elsewhere."""
        raise NotImplementedError

    def spread(self, vector: Vector | None, part: Vector) -> None:
        """The reverse of :meth:`collect`."""
        raise NotImplementedError


class ExactExchange(Exchange):
    """The sum along the tree of :mod:`dpcnn.parallel.split`: the same bits on any number of ranks."""

    def __init__(self, comm: Alone, size: int) -> None:
        super().__init__(comm, size)
        self.bounds = shares(size, comm.size)
        self._received: list[Vector] = []  # by row number: (ranks, width of this rank's part)

    def sum(self, leaves: int) -> Vector:
        width = self.part.stop - self.part.start
        known: dict[Node, Vector] = {}
        nodes = owned(leaves, self.comm.size)
        mine = [row for _, row in self.rows(leaves)]
        for number in range(max(map(len, nodes))):
            if len(self._received) == number:
                self._received.append(np.empty((self.comm.size, width), np.float32))
            received = self._received[number]
            givers = [number < len(theirs) for theirs in nodes]
            send = mine[number] if number < len(mine) else np.empty(0, np.float32)
            self.comm.alltoall_parts(send, received, self.bounds, givers)
            known.update((theirs[number], received[rank]) for rank, theirs in enumerate(nodes) if givers[rank])
        return tree_sum((0, leaves), known.get, add_into_left)

    def share(self, vector: Vector) -> None:
        self.comm.allgather_parts(vector, self.bounds)

    def collect(self, part: Vector) -> Vector | None:
        return self.comm.gather_parts(part, self.bounds)

    def spread(self, vector: Vector | None, part: Vector) -> None:
        self.comm.scatter_parts(vector, part, self.bounds)


class AllreduceExchange(Exchange):
    """One MPI_Allreduce; every rank updates everything. The last bits depend on the ranks."""

    def __init__(self, comm: Alone, size: int) -> None:
        super().__init__(comm, size)
        self._total = np.empty(size, np.float32)

    @property
    def part(self) -> slice:
        return slice(0, self.size)

    def sum(self, leaves: int) -> Vector:
        self._total[...] = 0
        for _, row in self.rows(leaves):
            self._total += row
        self.comm.allreduce(self._total)
        return self._total

    def share(self, vector: Vector) -> None:
        """Nothing to do: every rank has updated the whole."""

    def collect(self, part: Vector) -> Vector | None:
        return part if self.comm.rank == 0 else None

    def spread(self, vector: Vector | None, part: Vector) -> None:
        if vector is not None:
            part[...] = vector
        self.comm.broadcast(part)


EXCHANGES: dict[str, type[Exchange]] = {"exact": ExactExchange, "allreduce": AllreduceExchange}


@cache
def owned(leaves: int, ranks: int) -> Sequence[list[Node]]:
    """For each rank, the subtrees of tree(0, leaves) that it adds up."""
    bounds = shares(leaves, ranks)
    return [subtrees(leaves, bounds[rank], bounds[rank + 1]) for rank in range(ranks)]


def add_into_left(left: Vector, right: Vector) -> Vector:
    """left + right, in the memory of left."""
    left += right
    return left
