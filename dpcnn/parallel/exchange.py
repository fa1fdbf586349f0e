"""The exchange: the gradients of a step's microbatches in, the updated parameters out.

An exchange is used once per step, in this order: :meth:`~Exchange.sum` has this rank's gradients computed, adds up
those of all ranks, and returns the elements of the sum in ``shard``; the caller updates these elements of the
parameters; and :meth:`~Exchange.fetch` brings them to the ranks that do not share its memory.

An exchange has no memory that outlives a step: when a rank dies, the others make another one.

All exchanges add the gradients of a rank along the tree of :mod:`dpcnn.parallel.tree`, in buffers that
:meth:`~Exchange._add_up` uses again and again. The exact exchange is in :mod:`dpcnn.parallel.exact`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from dpcnn.base.arrays import Vector, zeros
from dpcnn.base.timing import Timer
from dpcnn.nn.layer import Keep
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.factors import Factors
from dpcnn.parallel.products import Products
from dpcnn.parallel.tree import Subtree, owned, tree_sum

Gradient = Callable[[int, Vector, Keep | None], None]


class Exchange:
    """What all exchanges have in common.

    Attributes:
        node: the ranks that share the memory of the parameters with this one.
        elements: the elements of the vector that the ranks of ``node`` update.
        shard: those that this rank updates.
        unique: those elements of the sum, counted from the start of ``shard``, that are this rank's alone: over all
            ranks, each element of the vector occurs exactly once. For what is summed over the whole vector.
        copied: whether the ranks of each ``node`` update all elements of the vector.
        whole: whether the ranks update all elements of the vector together. If not, the rest was on a node whose
            ranks have all died.
        timer: where the time of ``sum`` and ``fetch`` goes.
        products: the gradients that are a product of two factors.
    """

    node: SerialComm
    elements: slice
    shard: slice
    unique: slice
    copied: bool
    whole = True

    def __init__(
        self,
        comm: SerialComm,
        size: int,
        timer: Timer,
        elements: slice | None = None,
        products: Products | None = None,
        sizes: Sequence[int] = (),
    ) -> None:
        """The exchange of vectors (size,).

        Args:
            elements: those that this node has updated before it lost a rank; None: the rule chooses.
            products: the gradients that are a product of two factors.
            sizes: the images of each microbatch of most steps, for the rule.
        """
        self.comm, self.size, self.timer, self.products = comm, size, timer, products or {}
        self._spares: list[Vector] = []
        self._divide(elements, sizes)

    def _divide(self, elements: slice | None, sizes: Sequence[int]) -> None:
        """Decide, on all ranks, which of them updates which elements."""
        raise NotImplementedError

    def sum(self, sizes: Sequence[int], gradient: Gradient) -> Vector:
        """The sum of the gradients of microbatches over all ranks: its elements of ``shard``.

        It is valid until the next step.

        Args:
            sizes: the images of each microbatch.
            gradient: ``gradient(number, out, keep)`` writes the gradient of a microbatch of this rank into ``out``,
                (size,). Unless ``keep`` is None, it gives it the factors of each of the products, by
                ``keep(layer, x, dy)``.
        """
        raise NotImplementedError

    def _add_up(self, subtree: Subtree, total: Vector, gradient: Gradient, factors: Factors | None = None) -> None:
        """The sum of a subtree of gradients, into ``total``."""
        free = [*self._spares, total]  # the first gradient goes into the last of these, and all others are added to it

        def leaf(part: Subtree) -> Vector | None:
            if part[1] - part[0] > 1:
                return None
            if not free:
                self._spares.append(zeros((self.size,), np.float32))
                free.append(self._spares[-1])
            gradient(part[0], free[-1], partial(factors.keep, part[0]) if factors else None)
            return free.pop()

        def add(left: Vector, right: Vector) -> Vector:
            with self.timer("exchange"):
                left += right
            free.append(right)
            return left

        tree_sum(subtree, leaf, add)

    def fetch(self, params: Vector) -> None:
        """Fetch the elements of ``params``, (size,), that the ranks of other nodes have updated.

        The ranks of ``node`` fetch them together, into the memory that they share. They see the whole vector after
        the next operation in which each waits for the others.
        """
        raise NotImplementedError

    def publish(self, params: Vector) -> None:
        """Fetch these elements, and wait until all ranks of ``node`` have."""
        self.fetch(params)
        with self.timer("waiting"):
            self.node.barrier()

    def gather(self, shard: Vector) -> Vector | None:
        """The whole (size,) vector of all shards, on rank 0; None elsewhere."""
        raise NotImplementedError

    def scatter(self, whole: Vector | None, shard: Vector) -> None:
        """The reverse of :meth:`gather`."""
        raise NotImplementedError


class AllreduceExchange(Exchange):
    """One MPI_Allreduce; every rank updates everything. The last bits depend on the ranks."""

    copied = True

    def _divide(self, elements: slice | None, sizes: Sequence[int]) -> None:
        self.node = SerialComm()
        self.shard = self.elements = slice(0, self.size)
        self.unique = slice(0, 0 if self.comm.rank else self.size)
        self._total, self._row = np.empty((2, self.size), np.float32)

    def sum(self, sizes: Sequence[int], gradient: Gradient) -> Vector:
        self._total[...] = 0
        for subtree in owned(len(sizes), self.comm.size)[self.comm.rank]:
            self._add_up(subtree, self._row, gradient)
            with self.timer("exchange"):
                self._total += self._row
        with self.timer("exchange"):
            self.comm.allreduce(self._total)
        return self._total

    def fetch(self, params: Vector) -> None:
        """Nothing to do: every rank has updated the whole."""

    def gather(self, shard: Vector) -> Vector | None:
        return shard if self.comm.rank == 0 else None

    def scatter(self, whole: Vector | None, shard: Vector) -> None:
        if whole is not None:
            shard[...] = whole
        self.comm.broadcast(shard)
