"""The elements of a vector that each rank updates, and the messages between ranks: pure functions of counts."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from dpcnn.parallel.tree import Interval, Subtree, interval, split_evenly, subtrees

Runs = tuple[Sequence[int], Sequence[int]]
"""For each rank, the number of its elements and the place of the first of them: MPI's counts and displacements."""

SHARD_BLOCK = 1024
"""Elements of a block. A block is never split, so sums over blocks have the same bits on any number of ranks."""


def shard(size: int, ranks: int, rank: int) -> Interval:
    """A rank's shard of a vector: whole blocks of SHARD_BLOCK elements, except at the end of the vector."""
    start, stop = interval(-(-size // SHARD_BLOCK), ranks, rank)
    return min(start * SHARD_BLOCK, size), min(stop * SHARD_BLOCK, size)


def overlap(one: Interval, other: Interval) -> tuple[int, int]:
    """The start and the count of the elements that two intervals have in common; (0, 0): none."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop - start) if start < stop else (0, 0)


def outside(interval: Interval, holes: Sequence[Interval]) -> list[slice]:
    """The parts of an interval that lie outside the holes, which are in order and do not overlap."""
    edges = [interval[0], *(min(max(edge, interval[0]), interval[1]) for hole in holes for edge in hole), interval[1]]
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def without(interval: Interval, holes: Sequence[Interval]) -> Interval:
    """Where an interval lies in the vector that is left when the holes are cut out."""
    start, stop = (edge - sum(min(max(edge, first), end) - first for first, end in holes) for edge in interval)
    return start, stop


class Message(NamedTuple):
    """The elements that a rank sends to every rank, and those that it receives: for each rank, count and start."""

    sent: Runs
    received: Runs


class Layout(NamedTuple):
    """The elements of a vector that each rank of several nodes updates or passes on.

    A rank updates its *shard*: the shards of the ranks of a node make up the node's *range*, and the ranges of all
    nodes make up the vector, or each of them does. It fetches and passes on its *slice* for its node: the slices of a
    node's ranks make up the vector.

    Attributes:
        size: elements of the vector.
        nodes: for each node the interval of its ranks, in order.
        ranges: for each node its range; empty: divide the vector in proportion to the numbers of ranks. A node keeps
            its range when it loses a rank.
    """

    size: int
    nodes: tuple[Interval, ...]
    ranges: tuple[Interval, ...] = ()

    @property
    def ranks(self) -> int:
        """The number of ranks of all nodes."""
        return self.nodes[-1][1]

    def node_of(self, rank: int) -> int:
        """The index of a rank's node."""
        return bisect_right(self.nodes, (rank, self.ranks)) - 1

    def elements(self, node: int) -> Interval:
        """The elements that the ranks of a node update."""
        if self.ranges:
            return self.ranges[node]
        first, end = self.nodes[node]
        return shard(self.size, self.ranks, first)[0], shard(self.size, self.ranks, end - 1)[1]

    def shard(self, rank: int) -> Interval:
        """The elements that a rank updates."""
        node = self.node_of(rank)
        (first, end), (start, stop) = self.nodes[node], self.elements(node)
        lo, hi = shard(stop - start, end - first, rank - first)
        return start + lo, start + hi

    @property
    def copied(self) -> bool:
        """Whether each of several nodes updates the whole vector."""
        return len(self.nodes) > 1 and set(self.ranges) == {(0, self.size)}

    def unique(self, rank: int) -> int:
        """The number of elements of a rank's shard that count as its own: each element has one rank."""
        start, stop = self.shard(rank)
        return 0 if self.copied and self.node_of(rank) else stop - start

    def whole(self) -> bool:
        """Whether the ranges of the nodes make up the vector; false if a node has lost all its ranks."""
        bounds = [self.elements(node) for node in range(len(self.nodes))]
        starts, stops = [start for start, _ in bounds], [stop for _, stop in bounds]
        return self.copied or (starts == [0, *stops[:-1]] and stops[-1] == self.size)

    def slice(self, rank: int) -> Interval:
        """The elements that a rank passes on for its node."""
        first, end = self.nodes[self.node_of(rank)]
        return shard(self.size, end - first, rank - first)

    def of_nodes(self, leaves: int) -> list[list[Subtree]]:
        """For each node, the largest subtrees of tree(0, leaves) whose leaves all lie on its ranks."""
        bounds = split_evenly(leaves, self.ranks)
        return [subtrees(leaves, bounds[first], bounds[end]) for first, end in self.nodes]

    def received(self, leaves: int) -> int:
        """The elements of the sums that a node receives in a step without factors: its own among them."""
        ranges = map(self.elements, range(len(self.nodes)))
        return sum(map(len, self.of_nodes(leaves))) * max(stop - start for start, stop in ranges)

    def partner(self, rank: int, node: int) -> int:
        """The rank of another node that receives for it what the node's ranks share of a rank's leaves."""
        first, end = self.nodes[node]
        return first + (rank - self.nodes[self.node_of(rank)][0]) % (end - first)

    def sums(self, leaves: int, rank: int, holes: Sequence[Interval] = ()) -> list[Message]:
        """The first messages of a step: the sums of each node, to the ranks that update the elements.

        Message k carries subtree number k of each node. A rank sends from the array of its slice, and
        receives into an array (nodes, width of its shard); both without the elements in ``holes``.
        """
        everyone, of_nodes = range(self.ranks), self.of_nodes(leaves)
        slices = [without(self.slice(r), holes) for r in everyone]
        shards = [without(self.shard(r), holes) for r in everyone]
        own, shard = slices[rank], shards[rank]
        messages = []
        for number in range(max(map(len, of_nodes))):
            holds = [number < len(subtrees) for subtrees in of_nodes]
            sent = [overlap(own, shards[r]) if holds[self.node_of(rank)] else (own[0], 0) for r in everyone]
            received = [overlap(slices[r], shard) if holds[self.node_of(r)] else (shard[0], 0) for r in everyone]
            width = shard[1] - shard[0]
            offsets = [self.node_of(r) * width + start - shard[0] for r, (start, _) in enumerate(received)]
            messages.append(Message(runs(sent, [start - own[0] for start, _ in sent]), runs(received, offsets)))
        return messages

    def updates(self, rank: int) -> Message:
        """The last message of a step, unless each node has a copy: shards of the vector, to the ranks of other nodes
        that fetch them."""
        node, everyone = self.node_of(rank), range(self.ranks)
        sent = [overlap(self.slice(r), self.shard(rank)) if self.node_of(r) != node else (0, 0) for r in everyone]
        received = [overlap(self.slice(rank), self.shard(r)) if self.node_of(r) != node else (0, 0) for r in everyone]
        return Message(runs(sent, [start for start, _ in sent]), runs(received, [start for start, _ in received]))


def runs(overlaps: Sequence[tuple[int, int]], offsets: Sequence[int]) -> Runs:
    """Counts and offsets for MPI, of overlaps as (start, count); the offset of an empty one is 0."""
    counts = tuple(count for _, count in overlaps)
    return counts, tuple(offset if count else 0 for offset, count in zip(offsets, counts, strict=True))
