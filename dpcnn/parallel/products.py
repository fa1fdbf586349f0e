"""The gradients that are products of two factors: which are sent as factors, and to whom; and who updates what.

Pure functions of shapes and counts, as those of :mod:`dpcnn.parallel.layout`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product as pairs
from typing import NamedTuple, Protocol

from dpcnn.base.arrays import Array
from dpcnn.parallel.layout import Layout, Message, overlap, runs
from dpcnn.parallel.tree import Interval, interval

MOST_MULTIPLICATIONS = 32
"""The most multiplications for each byte that is saved. A core with 40 billion of them per second does 32 while a link
of 10 Gbit/s carries one byte."""

MOST_OF_COPIES = 64
"""The most multiplications for each byte that is saved because each node updates the whole vector: as many as a core
does while a link of 5 Gbit/s carries one."""

UPDATE = 80
"""The multiplications that a core does in the time in which it updates an element by Adam, 2 ns."""

LEAST_SAVED = 1 << 19
"""The fewest bytes that each node saves per step: fewer do not pay for the calls."""


MOST_RECEIVED = (1 << 31) - 1
"""The most elements of a message: MPI's places in it are 32-bit integers. With copies, a rank that is alone on its node
receives whole vectors, one from each node, in a step without factors: an epoch's last one may be such a step."""


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

    def multiply(self, x: Array, dy: Array, out: Array, rows: int) -> None:
        """Compute some rows, so many at a time."""


Products = Mapping[int, Product]
"""By the number of the layer, in the order of the vector."""


class Counts(NamedTuple):
    """What the rules depend on. They assume that images, elements and ranks are spread evenly over the nodes.

    Attributes:
        sizes: the images of each leaf.
        nodes, ranks: all of them.
        copied: whether each node updates the whole vector.
    """

    sizes: Sequence[int]
    nodes: int
    ranks: int
    copied: bool = False

    @property
    def images(self) -> float:
        """The images of the other nodes."""
        return sum(self.sizes) * (self.nodes - 1) / self.nodes

    @property
    def part(self) -> float:
        """The part of the vector that a node updates."""
        return 1.0 if self.copied else 1 / self.nodes

    def sums(self, elements: int) -> float:
        """The elements that a node receives if each node sends a sum."""
        return elements * (self.nodes - 1) * self.part

    def factors(self, product: Product) -> float:
        """The elements that a node receives of the factors of a layer."""
        return self.images * (product.C * self.part + self.rows(product) + product.F)

    def multiplications(self, product: Product) -> float:
        """Those of a rank for the products of the leaves of other nodes."""
        return self.images * product.F * (product.C * self.part * self.nodes / self.ranks + self.rows(product))

    def rows(self, product: Product) -> int:
        """The rows of a layer that are computed at a time."""
        return max(product.rows(images) for images in set(self.sizes))


def pays(product: Product, counts: Counts) -> bool:
    """Whether the nodes send the factors of a layer instead of sums: a rule of shapes and counts alone.

    Factors save bytes and cost multiplications, which must be at most MOST_MULTIPLICATIONS per byte. The rule bounds
    the memory: the rows that are computed at a time have, of all leaves together, at most the elements of the layer.
    """
    sizes = counts.sizes
    if counts.nodes == 1 or min(sizes) < 2 or len(sizes) * counts.rows(product) > product.C:
        return False
    saved = 4 * (counts.sums(product.C * product.F) - counts.factors(product))
    return saved >= LEAST_SAVED and counts.multiplications(product) <= MOST_MULTIPLICATIONS * saved


def copies_pay(size: int, products: Products, counts: Counts) -> bool:
    """Whether each node updates the whole vector, so that no parameters return: a rule of shapes and counts alone.

    This saves bytes if most of the vector is computed from factors, and costs multiplications and updates, which must
    be at most MOST_OF_COPIES multiplications per byte.

    Args:
        size: of the vector.
    """
    if counts.nodes == 1 or counts.nodes * size > MOST_RECEIVED:
        return False
    apart, copied = (cost(size, products, counts._replace(copied=copied)) for copied in (False, True))
    saved = 4 * (apart.received - copied.received)
    return saved >= LEAST_SAVED and copied.work - apart.work <= MOST_OF_COPIES * saved


class Cost(NamedTuple):
    """What a step costs beside the gradients.

    Attributes:
        received: the elements that a node receives.
        multiplications: of a rank, for the products of the leaves of other nodes.
        updated: the elements that a rank updates.
        messages: from each node to each other one.
    """

    received: float
    multiplications: float
    updated: float
    messages: int

    @property
    def work(self) -> float:
        """That of a rank, in multiplications."""
        return self.multiplications + UPDATE * self.updated


def cost(size: int, products: Products, counts: Counts) -> Cost:
    """The cost of a step with a vector of ``size`` elements."""
    chosen = [product for product in products.values() if pays(product, counts)]
    rest = size - sum(product.C * product.F for product in chosen)
    return Cost(
        counts.sums(rest) + sum(map(counts.factors, chosen)) + size * (1 - counts.part),
        sum(map(counts.multiplications, chosen)),
        size * counts.part * counts.nodes / counts.ranks,
        1 + bool(chosen) + (not counts.copied),  # sums, factors, parameters
    )


def span(product: Product) -> Interval:
    """The elements of a product."""
    return product.start, product.start + product.C * product.F


def needed_rows(product: Product, images: int, elements: Interval) -> Interval:
    """The rows of the whole products that overlap some elements of the vector: the columns of x that these need."""
    start, count = overlap(span(product), elements)
    rows = product.rows(images)
    first, end = start - product.start, start - product.start + count
    return (first // (rows * product.F) * rows, -(-end // (rows * product.F)) * rows) if count else (0, 0)


class Parcel(NamedTuple):
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


def extent(found: Sequence[Parcel]) -> tuple[int, int]:
    """The start and the count of the elements of consecutive parcels."""
    return (found[0].place.start, found[-1].place.stop - found[0].place.start) if found else (0, 0)


def length(found: Iterable[list[Parcel]]) -> int:
    """The number of elements of all parcels."""
    return sum(extent(some)[1] for some in found)
