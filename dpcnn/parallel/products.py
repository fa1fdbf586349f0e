"""The gradients that are products of two factors: which are sent as factors, and to whom.

Pure functions of shapes and counts, as those of :mod:`dpcnn.parallel.layout`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as pairs
from typing import Protocol

from dpcnn.base.arrays import Array
from dpcnn.parallel.layout import Layout, Message, overlap, runs
from dpcnn.parallel.tree import Interval, interval

MOST_MULTIPLICATIONS = 32
"""The most multiplications for each byte that is saved. A core with 40 billion of them per second does 32 while a link
of 10 Gbit/s carries one byte."""

LEAST_SAVED = 1 << 19
"""The fewest bytes that each node saves per step: fewer do not pay for the calls."""


class Product(Protocol):
    """A gradient x^T dy, (C, F), which starts at an element of the vector; see ``dpcnn.nn.layers.WeightProduct``."""

    @property
    def start(self) -> int:
        """Its first element."""

    @property
    def C(self) -> int:
        """Its rows."""

    @property
    def F(self) -> int:
        """Its columns."""

    def rows(self, images: int) -> int:
        """The rows that are computed at a time."""

    def multiply(self, x: Array, dy: Array, out: Array) -> None:
        """Compute some rows."""


Products = Mapping[int, Product]
"""By the number of the layer, in the order of the vector."""


def pays(product: Product, sizes: Sequence[int], nodes: int, ranks: int) -> bool:
    """Whether the nodes send the factors of a layer instead of sums: the rule, a function of shapes and counts alone.

    Factors save bytes and cost multiplications, which must be at most MOST_MULTIPLICATIONS per byte. The rule assumes
    that images, elements and ranks are spread evenly over the nodes, and that each node sends one sum. It bounds the
    memory: the rows that are computed at a time have, of all leaves together, at most the elements of the layer.

    Args:
        sizes: the images of each leaf.
        nodes, ranks: all of them.
    """
    C, F, others, rows = product.C, product.F, nodes - 1, max(product.rows(images) for images in set(sizes))
    if nodes == 1 or min(sizes) < 2 or len(sizes) * rows > C:
        return False
    images = sum(sizes) / nodes  # of a node
    sums = C * F * others / nodes
    factors = images * others * (C / nodes + rows + F)
    multiplications = images * others * F * (C / ranks + rows)
    saved = 4 * (sums - factors)
    return saved >= LEAST_SAVED and multiplications <= MOST_MULTIPLICATIONS * saved


def span(product: Product) -> Interval:
    """The elements of a product."""
    return product.start, product.start + product.C * product.F


def needed_rows(product: Product, images: int, elements: Interval) -> Interval:
    """The rows of the whole products that overlap some elements of the vector: the columns of x that these need."""
    start, count = overlap(span(product), elements)
    rows = product.rows(images)
    first, end = start - product.start, start - product.start + count
    return (first // (rows * product.F) * rows, -(-end // (rows * product.F)) * rows) if count else (0, 0)


@dataclass(frozen=True)
class Parcel:
    """The factors of a leaf that a node needs for a layer.

    Attributes:
        leaf, layer: their numbers.
        columns: of x.
        place: the elements of the message: the memory order, dy (N, F), and the columns of x (N, C).
    """

    leaf: int
    layer: int
    columns: Interval
    place: slice


def parcels(
    products: Products, sizes: Sequence[int], orders: Iterable[tuple[Iterable[int], Interval]]
) -> list[list[Parcel]]:
    """The factors for each order, one after the other in one message: of some leaves, for some elements."""
    found, start = [], 0
    for leaves, elements in orders:
        found.append(list[Parcel]())
        for leaf, (layer, product) in pairs(leaves, products.items()):
            columns = needed_rows(product, sizes[leaf], elements)
            if columns[0] < columns[1]:
                size = 1 + sizes[leaf] * (product.F + columns[1] - columns[0])
                found[-1].append(Parcel(leaf, layer, columns, slice(start, start + size)))
                start += size
    return found


def outgoing(layout: Layout, products: Products, sizes: Sequence[int], rank: int) -> list[list[Parcel]]:
    """For each node, the factors that a rank sends to it: those of its own leaves."""
    own, home = range(*interval(len(sizes), layout.ranks, rank)), layout.node_of(rank)
    nodes = range(len(layout.nodes))
    return parcels(products, sizes, ((own if node != home else (), layout.elements(node)) for node in nodes))


def incoming(layout: Layout, products: Products, sizes: Sequence[int], node: int) -> list[list[Parcel]]:
    """For each rank, the factors that a node receives from it."""
    leaves = [range(*interval(len(sizes), layout.ranks, rank)) for rank in range(layout.ranks)]
    orders = ((own if layout.node_of(rank) != node else (), layout.elements(node)) for rank, own in enumerate(leaves))
    return parcels(products, sizes, orders)


def message(layout: Layout, rank: int, sent: Sequence[list[Parcel]], received: Sequence[list[Parcel]]) -> Message:
    """The message of a rank: one of the ranks of a node receives what another rank sends to the node."""
    home, everyone = layout.node_of(rank), range(layout.ranks)
    to = [(0, 0)] * layout.ranks
    for node, found in enumerate(sent):
        to[layout.partner(rank, node)] = extent(found)
    given = [extent(received[r]) if layout.partner(r, home) == rank else (0, 0) for r in everyone]
    return Message(runs(to, [start for start, _ in to]), runs(given, [start for start, _ in given]))


def extent(found: Sequence[Parcel]) -> Interval:
    """The start and the number of the elements of consecutive parcels."""
    return (found[0].place.start, found[-1].place.stop - found[0].place.start) if found else (0, 0)


def length(found: Iterable[list[Parcel]]) -> int:
    """The number of elements of all parcels."""
    return sum(extent(some)[1] for some in found)
