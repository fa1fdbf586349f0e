"""Norms of parts of a vector that several ranks hold, with the same bits on any number of ranks."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Vector
from dpcnn.optim.clipping import squares
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import SHARD_BLOCK, overlap
from dpcnn.parallel.tree import Interval


class Norms:
    """The norms of intervals of the flat vector.

    The squares are added by blocks of :data:`SHARD_BLOCK` elements, which begin anew where an interval does, and then
    exactly (``math.fsum``). No two ranks hold elements of one block.
    """

    def __init__(self, comm: SerialComm, intervals: Sequence[Interval], held: slice) -> None:
        """Every rank makes its own.

        Args:
            intervals: in order, without common elements; the same on every rank.
            held: the elements of this rank; those of all ranks are the whole vector, in the order of the ranks.
        """
        self.comm, self.held = comm, held
        self._parts = [overlap(interval, (held.start, held.stop)) for interval in intervals]
        blocks = np.array(
            comm.allgather_obj([blocks_of(*part) for part in self._parts]), np.int64
        )  # (ranks, intervals)
        blocks = blocks.reshape(comm.size, len(intervals))
        counts = blocks.sum(axis=1)
        self._filled = np.arange(counts.max()) < counts[:, None]  # (ranks, most blocks)
        self._ends = np.cumsum(blocks.sum(axis=0))

    def __call__(self, *vectors: Vector) -> NDArray[np.float64]:
        """The norms (vectors, intervals), from the elements of each vector that this rank holds."""
        row = np.zeros((len(vectors), self._filled.shape[1]), np.float64)
        for sums, vector in zip(row, vectors, strict=True):
            found = [self._squares(vector, start, count) for start, count in self._parts if count]
            sums[: sum(map(len, found))] = np.concatenate(found or [sums[:0]])
        rows = self.comm.allgather(row)  # (ranks, vectors, most blocks)
        in_order = (rows[:, number][self._filled] for number in range(len(vectors)))
        return np.array([[math.sqrt(math.fsum(part)) for part in np.split(sums, self._ends[:-1])] for sums in in_order])

    def _squares(self, vector: Vector, start: int, count: int) -> NDArray[np.float64]:
        first = start - self.held.start
        return squares(vector[first : first + count], SHARD_BLOCK, start)


def blocks_of(start: int, count: int) -> int:
    """The number of blocks that have any of ``count`` elements from ``start`` on."""
    return -(-(start + count) // SHARD_BLOCK) - start // SHARD_BLOCK if count else 0
