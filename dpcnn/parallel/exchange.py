"""The exchange: the gradients of a step's microbatches in, the updated parameters out.

An exchange is used once per step, in this order: :meth:`~Exchange.sum` has this rank's gradients computed, adds up
those of all ranks, and returns the elements of the sum in ``shard``; the caller updates these elements of the
parameters; and :meth:`~Exchange.fetch` brings them to the ranks that do not share its memory.

An exchange has no memory that outlives a step: when a rank dies, the others make another one.

Both exchanges add the gradients of a rank along the tree of :mod:`dpcnn.parallel.tree`, in buffers that
:meth:`~Exchange._add_up` uses again and again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import iadd

import numpy as np

from dpcnn.base.arrays import Vector, empty, zeros
from dpcnn.base.timing import Timer
from dpcnn.nn.layer import Keep
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.factors import Factors
from dpcnn.parallel.layout import Layout, Message, outside
from dpcnn.parallel.products import Counts, Products, copies_pay, pays
from dpcnn.parallel.shared import shared_array
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


@dataclass(frozen=True)
class Plan:
    """What a rank sends and receives in steps with microbatches of the same sizes.

    Attributes:
        of_nodes: the subtrees of each node.
        messages: the sums to send, of subtree k of each node.
        factors: what is sent in place of sums; None: nothing.
        own: the parts of the rank's slice whose sums are sent.
        wanted: the parts of its shard whose sums are received.
    """

    of_nodes: list[list[Subtree]]
    messages: list[Message]
    factors: Factors | None
    own: list[slice]
    wanted: list[slice]


class ExactExchange(Exchange):
    """The sum along the tree of :mod:`dpcnn.parallel.tree`: the same bits on any number of ranks and nodes.

    The ranks of a node see each other's rows, and one copy of the parameters. Each adds up a slice
    of them, as far as the node's leaves hold whole subtrees; those few sums go over the network, so
    it carries one copy per node and not one per rank. With one node there is nothing to send; with one
    rank per node, nothing to add up before. Where that is less, the factors of products go over the network: see
    :mod:`dpcnn.parallel.factors`. And where that is less, each node updates all parameters, and none return.
    """

    def _divide(self, elements: slice | None, sizes: Sequence[int]) -> None:
        rank, self.node = self.comm.rank, self.comm.node()
        self._layout = agreed_layout(self.comm, self.size, self.products, sizes, elements)
        self._home = self._layout.node_of(rank)
        self.whole, self.copied = self._layout.whole(), self._layout.copied
        self.elements = slice(*self._layout.elements(self._home))
        self.shard = slice(*self._layout.shard(rank))
        self.unique = slice(0, self._layout.unique(rank))
        self.bounds = [0, *accumulate(map(self._layout.unique, range(self.comm.size)))]
        self._updates = self._layout.updates(rank)
        self._buffers: list[Vector] = []  # by row number: (ranks of the node, size)
        self._received: list[Vector] = []  # by row number: (nodes * width of the part,)
        self._plans: dict[tuple[int, ...], Plan] = {}

    def sum(self, sizes: Sequence[int], gradient: Gradient) -> Vector:
        plan, buffers = self._plan(tuple(sizes)), self._own_buffers(len(sizes))
        if plan.factors:
            plan.factors.begin()
        for subtree, row in buffers:
            self._add_up(subtree, row, gradient, plan.factors)
        with self.timer("waiting"):
            self.node.barrier()  # its rows are full
        with self.timer("exchange"):
            return self._sum(len(sizes), plan)

    def _plan(self, sizes: tuple[int, ...]) -> Plan:
        if sizes not in self._plans:  # a run has two at most: a full batch, and an epoch's last one
            layout, rank = self._layout, self.comm.rank
            nodes = len(layout.nodes)
            counts = Counts(sizes, nodes, layout.ranks, layout.copied)
            chosen = {number: product for number, product in self.products.items() if pays(product, counts)}
            factors = Factors(self.comm, self.node, layout, chosen, sizes) if chosen else None
            holes = factors.holes if factors else []
            self._plans[sizes] = Plan(
                layout.of_nodes(len(sizes)),
                layout.sums(len(sizes), rank, holes),
                factors,
                outside(layout.slice(rank), holes),
                outside(layout.shard(rank), holes),
            )
        return self._plans[sizes]

    def _own_buffers(self, leaves: int) -> list[tuple[Subtree, Vector]]:
        """The subtrees of tree(0, leaves) that this rank adds up, each with its (size,) row."""
        held = owned(leaves, self.comm.size)
        first, end = self._layout.nodes[self._home]
        while len(self._buffers) < max(len(held[rank]) for rank in range(first, end)):
            self._buffers.append(shared_array(self.node, (self.node.size, self.size), np.float32))
        return [
            (subtree, rows[self.node.rank]) for subtree, rows in zip(held[self.comm.rank], self._buffers, strict=False)
        ]

    def _sum(self, leaves: int, plan: Plan) -> Vector:
        held = owned(leaves, self.comm.size)
        first, end = self._layout.nodes[self._home]
        known = {
            subtree: rows[rank - first]
            for rank in range(first, end)
            for subtree, rows in zip(held[rank], self._buffers, strict=False)
        }
        parts = {subtree: joined([row[part] for part in plan.own]) for subtree, row in known.items()}
        sums: list[Vector] = [tree_sum(subtree, parts.get, iadd) for subtree in plan.of_nodes[self._home]]
        if len(plan.of_nodes) == 1:
            return sums[0]
        total: Vector = tree_sum((0, leaves), self._send(sums, plan).get, iadd)
        return plan.factors.complete(total, plan.wanted, known, self.shard) if plan.factors else total

    def _send(self, sums: list[Vector], plan: Plan) -> dict[Subtree, Vector]:
        """Every node's sums, the elements of this rank's part, by their subtrees."""
        known: dict[Subtree, Vector] = {}
        nodes, width = len(plan.of_nodes), sum(part.stop - part.start for part in plan.wanted)
        for number, message in enumerate(plan.messages):
            if len(self._received) == number:
                self._received.append(np.empty(nodes * (self.shard.stop - self.shard.start), np.float32))
            sending = sums[number] if number < len(sums) else np.empty(0, np.float32)
            received = self._received[number][: nodes * width].reshape(nodes, width)
            self.comm.alltoall(sending, message.sent, received, message.received)
            for theirs, row in zip(plan.of_nodes, received, strict=True):
                if number < len(theirs):
                    known[theirs[number]] = row
        return known

    def fetch(self, params: Vector) -> None:
        if len(self._layout.nodes) > 1 and not self.copied:  # each rank fetches its slice of the vector for its node
            with self.timer("exchange"):
                self.comm.alltoall(params, self._updates.sent, params, self._updates.received)

    def gather(self, shard: Vector) -> Vector | None:
        return self.comm.gather_shards(shard[self.unique], self.bounds)

    def scatter(self, whole: Vector | None, shard: Vector) -> None:
        if self.copied:
            everything = np.empty(self.size, np.float32) if whole is None else whole
            self.comm.broadcast(everything)
            shard[...] = everything[self.shard]
        else:
            self.comm.scatter_shards(whole, shard, self.bounds)


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


def agreed_layout(
    comm: SerialComm, size: int, products: Products, sizes: Sequence[int], elements: slice | None = None
) -> Layout:
    """The layout of all ranks, from what each knows of its node; the arguments are those of :class:`Exchange`."""
    node, own = comm.node(), [elements.start, elements.stop] if elements else None
    places = comm.allgather_obj([node.rank, node.size, own])
    firsts = [(rank, ranks, kept) for rank, (local, ranks, kept) in enumerate(places) if local == 0]
    ranges = tuple((kept[0], kept[1]) for *_, kept in firsts if kept)
    if sizes and not ranges and copies_pay(size, products, Counts(sizes, len(firsts), comm.size)):
        ranges = ((0, size),) * len(firsts)
    return Layout(size, tuple((rank, rank + ranks) for rank, ranks, _ in firsts), ranges)


EXCHANGES: dict[str, type[Exchange]] = {"exact": ExactExchange, "allreduce": AllreduceExchange}


def joined(parts: Sequence[Vector]) -> Vector:
    """The parts one after the other: themselves if there is one, else a copy."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, np.float32), *parts], out=empty((sum(map(len, parts)),), np.float32))
