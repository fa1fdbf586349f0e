"""Which elements of a vector each rank updates, and what it sends to others: pure functions of counts."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from dpcnn.parallel.tree import Interval, Subtree, interval, split_evenly, subtrees

Runs = tuple[tuple[int, ...], tuple[int, ...]]

SHARD_BLOCK = 1024
"""Elements of a vector that are never parted: so what is worked out block by block has the same bits on any ranks."""


def shard(size: int, ranks: int, rank: int) -> Interval:
    """A rank's run of the elements of a vector: whole blocks of SHARD_BLOCK, but for the vector's end."""
    start, stop = interval(-(-size // SHARD_BLOCK), ranks, rank)
    return min(start * SHARD_BLOCK, size), min(stop * SHARD_BLOCK, size)


def overlap(one: Interval, other: Interval) -> tuple[int, int]:
    """Where two runs of elements, each (start, stop), have some in common, and how many; (0, 0): none."""
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop - start) if start < stop else (0, 0)


@dataclass(frozen=True)
class Message:
    """What a rank hands to every rank, and what it is handed: for each, counts and first elements."""

    sent: Runs
    received: Runs


@dataclass(frozen=True)
class Layout:
    """Which elements of a vector each rank of several nodes is responsible for.

    Its *part* it updates: all ranks' parts make up the vector. Its *slice* it fetches and passes on
    for its node: the slices of a node's ranks make up the vector.

    Attributes:
        size: elements of the vector.
        nodes: for each node its ranks, [first, end); the nodes follow each other.
    """

    size: int
    nodes: tuple[Interval, ...]

    @property
    def ranks(self) -> int:
        """The number of ranks of all nodes."""
        return self.nodes[-1][1]

    def node_of(self, rank: int) -> int:
        """The number of a rank's node."""
        return bisect_right(self.nodes, (rank, self.ranks)) - 1

    def shard(self, rank: int) -> Interval:
        """The elements that a rank updates."""
        return shard(self.size, self.ranks, rank)

    def slice(self, rank: int) -> Interval:
        """The elements that a rank passes on."""
        first, end = self.nodes[self.node_of(rank)]
        return shard(self.size, end - first, rank - first)

    def of_nodes(self, leaves: int) -> list[list[Subtree]]:
        """For each node, the largest subtrees of tree(0, leaves) that its ranks hold together."""
        bounds = split_evenly(leaves, self.ranks)
        return [subtrees(leaves, bounds[first], bounds[end]) for first, end in self.nodes]

    def sums(self, leaves: int, rank: int) -> list[Message]:
        """The first messages of a step: sums of nodes, to the ranks that update them.

        Message k is about each node's subtree number k. A rank sends from the array of its slice, and
        receives into an array (nodes, width of its part).
        """
        here, shard = self.slice(rank), self.shard(rank)
        everyone, of_nodes = range(self.ranks), self.of_nodes(leaves)
        messages = []
        for number in range(max(map(len, of_nodes))):
            holds = [number < len(subtrees) for subtrees in of_nodes]
            sent = [overlap(here, self.shard(r)) if holds[self.node_of(rank)] else (here[0], 0) for r in everyone]
            received = [overlap(self.slice(r), shard) if holds[self.node_of(r)] else (shard[0], 0) for r in everyone]
            width = shard[1] - shard[0]
            places = [self.node_of(r) * width + start - shard[0] for r, (start, _) in enumerate(received)]
            messages.append(Message(runs(sent, [start - here[0] for start, _ in sent]), runs(received, places)))
        return messages

    def updates(self, rank: int) -> Message:
        """The last message of a step: parts of the vector, to the ranks of other nodes that fetch them."""
        here, everyone = self.node_of(rank), range(self.ranks)
        sent = [overlap(self.slice(r), self.shard(rank)) if self.node_of(r) != here else (0, 0) for r in everyone]
        received = [overlap(self.slice(rank), self.shard(r)) if self.node_of(r) != here else (0, 0) for r in everyone]
        return Message(runs(sent, [start for start, _ in sent]), runs(received, [start for start, _ in received]))


def runs(overlaps: Sequence[Interval], places: Sequence[int]) -> Runs:
    """Counts and places, as MPI wants them; an empty run has place 0."""
    counts = tuple(count for _, count in overlaps)
    return counts, tuple(place if count else 0 for place, count in zip(places, counts, strict=True))
