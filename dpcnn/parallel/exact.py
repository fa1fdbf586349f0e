"""The exact exchange: the same bits on any number of ranks and nodes."""

from collections.abc import Sequence
from itertools import accumulate
from operator import iadd
from typing import NamedTuple

import numpy as np

from dpcnn.base.arrays import Vector, empty
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exchange import Exchange, Gradient
from dpcnn.parallel.factors import Factors
from dpcnn.parallel.layout import Layout, Message, outside
from dpcnn.parallel.products import Counts, Products, copies_pay, pays
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.tree import Subtree, owned, tree_sum


class Plan(NamedTuple):
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
    rank per node, nothing to add up before. Where :func:`~dpcnn.parallel.products.pays` says so, the factors of
    products go over the network in place of sums: see :mod:`dpcnn.parallel.factors`. And where
    :func:`~dpcnn.parallel.products.copies_pay` says so, each node updates all parameters, and none return.
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
        plan = self._plan(tuple(sizes))
        if plan.factors:
            plan.factors.begin()
        for subtree, rows in zip(owned(len(sizes), self.comm.size)[self.comm.rank], self._buffers, strict=False):
            self._add_up(subtree, rows[self.node.rank], gradient, plan.factors)
        with self.timer("waiting"):
            self.node.barrier()  # its rows are full
        with self.timer("exchange"):
            return self._sum(len(sizes), plan)

    def _plan(self, sizes: tuple[int, ...]) -> Plan:
        if sizes not in self._plans:  # a run has two at most: a full batch, and an epoch's last one
            with self.comm.fail_together():  # a node may have too little memory
                self._make_buffers(len(sizes))
                self._plans[sizes] = self._make_plan(sizes)
        return self._plans[sizes]

    def _make_buffers(self, leaves: int) -> None:
        """Make as many rows as the ranks of this node need for their subtrees of tree(0, leaves)."""
        held = owned(leaves, self.comm.size)
        first, end = self._layout.nodes[self._home]
        while len(self._buffers) < max(len(held[rank]) for rank in range(first, end)):
            self._buffers.append(shared_array(self.node, (self.node.size, self.size), np.float32))

    def _make_plan(self, sizes: tuple[int, ...]) -> Plan:
        layout, rank = self._layout, self.comm.rank
        counts = Counts(sizes, len(layout.nodes), layout.ranks, layout.copied)
        chosen = {number: product for number, product in self.products.items() if pays(product, counts)}
        factors = Factors(self.comm, self.node, layout, chosen, sizes) if chosen else None
        holes = factors.holes if factors else []
        return Plan(
            layout.of_nodes(len(sizes)),
            layout.sums(len(sizes), rank, holes),
            factors,
            outside(layout.slice(rank), holes),
            outside(layout.shard(rank), holes),
        )

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


def joined(parts: Sequence[Vector]) -> Vector:
    """The parts one after the other: themselves if there is one, else a copy."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([np.empty(0, np.float32), *parts], out=empty((sum(map(len, parts)),), np.float32))
