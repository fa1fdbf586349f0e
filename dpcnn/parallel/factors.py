"""Factors: what nodes send of the gradients of linear layers where this is less than sums.

The gradient of the weights of a linear layer is a product x^T dy, of the layer's input x (N, C) and the gradient of its
output dy (N, F). For few images, these factors have far fewer elements than the product, (C, F). So each node sends
the factors of its leaves, and a rank multiplies those of other nodes itself: only for its shard, and from there on
along the tree.

The bits of a product must not depend on the rank that computes it. The gradient is computed as several products, of
some rows of (C, F) each. A rank computes whole products, those that overlap its shard, with the shapes and the memory
order that the rank of the leaf has used.

After Zhang et al., "Poseidon" (2017), which calls them sufficient factors.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from operator import iadd

import numpy as np

from dpcnn.base.arrays import Array, Vector, empty
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import Layout, overlap
from dpcnn.parallel.products import Product, Products, incoming, length, message, outgoing, span
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.tree import Interval, Subtree, tree_sum


class Factors:
    """The factors of the leaves of all nodes, for steps with leaves of the same sizes.

    The ranks of a node receive the factors of other nodes into memory that they share, each factor once.

    Attributes:
        holes: the elements of the vector that are computed from factors.
    """

    def __init__(
        self, comm: SerialComm, node: SerialComm, layout: Layout, products: Products, sizes: Sequence[int]
    ) -> None:
        """``products``: those for which :func:`pays` is true."""
        self._comm, self._node, self._products, self._sizes = comm, node, products, sizes
        self.holes = [span(product) for product in products.values()]
        sent = outgoing(layout, products, sizes, comm.rank)
        received = incoming(layout, products, sizes, layout.node_of(comm.rank))
        self._message = message(layout, comm.rank, sent, received)
        self._outgoing, self._incoming = list(chain(*sent)), list(chain(*received))
        self._outbox = np.empty(length(sent), np.float32)
        self._inbox = shared_array(node, (length(received),), np.float32)

    def begin(self) -> None:
        """Begin a step: receive the factors of other ranks from now on."""
        self._comm.irecv(self._inbox, self._message.received)
        self._missing = len(self._outgoing)
        if not self._missing:
            self._comm.isend(self._outbox, self._message.sent)

    def keep(self, leaf: int, layer: int, x: Array, dy: Array) -> None:
        """Keep the factors of a leaf of this rank for the other nodes: x (N, C) and dy (N, F)."""
        for parcel in self._outgoing:
            if (parcel.leaf, parcel.layer) == (leaf, layer):
                place = self._outbox[parcel.place]
                place[0] = 2 * in_fortran_order(x) + in_fortran_order(dy)
                place[1 : 1 + dy.size].reshape(dy.shape)[...] = dy
                place[1 + dy.size :].reshape(len(x), -1)[...] = x[:, slice(*parcel.columns)]
                self._missing -= 1
                if not self._missing:  # all are there, and travel while the gradients of earlier layers are computed
                    self._comm.isend(self._outbox, self._message.sent)

    def complete(self, sums: Vector, parts: Sequence[slice], known: Mapping[Subtree, Vector], shard: slice) -> Vector:
        """The total of a shard: its parts outside the holes are known, the others are added up from products.

        Args:
            sums: the totals of ``parts``, one after the other.
            parts: of the vector.
            known: the sums of the ranks of the node, (size,); written over in the shard.
        """
        self._comm.wait()
        self._node.barrier()  # its ranks have received all factors
        total, start = empty((shard.stop - shard.start,), np.float32), 0
        for part in parts:
            width = part.stop - part.start
            total[part.start - shard.start : part.stop - shard.start] = sums[start : start + width]
            start += width
        self._add_up(known, shard, total)
        return total

    def _add_up(self, known: Mapping[Subtree, Vector], shard: slice, total: Vector) -> None:
        """Add up the elements of a shard in the holes, from sums of the node and products of other leaves."""
        for layer, product in self._products.items():
            leaves = {
                parcel.leaf: Leaf(product, self._sizes[parcel.leaf], parcel.columns, self._inbox[parcel.place])
                for parcel in self._incoming
                if parcel.layer == layer
            }
            for start, stop in pairwise(self._edges(product, shard)):
                value = partial(known_or_product, known, leaves, slice(start, stop))
                total[start - shard.start : stop - shard.start] = tree_sum((0, len(self._sizes)), value, iadd)

    def _edges(self, product: Product, shard: slice) -> list[int]:
        """The elements of the shard at which a product of any leaf begins or ends, with those of the shard."""
        start, count = overlap(span(product), (shard.start, shard.stop))
        edges = {start, start + count} if count else set()
        for images in set(self._sizes):
            block = product.rows(images) * product.F
            edges |= {edge for edge in range(product.start, start + count, block) if edge > start}
        return sorted(edges)


class Leaf:
    """The product of a leaf of another node, some rows at a time, in the order of the vector."""

    def __init__(self, product: Product, images: int, columns: Interval, message: Vector) -> None:
        """``message``: as :class:`dpcnn.parallel.products.Parcel` describes it."""
        self._product, self._rows = product, product.rows(images)
        self._first_column, size = columns[0], images * product.F
        x_order, dy_order = divmod(int(message[0]), 2)
        self._x, self._x_order = message[1 + size :].reshape(images, -1), x_order
        self._dy = like((images, product.F), dy_order)
        self._dy[...] = message[1 : 1 + size].reshape(self._dy.shape)
        self._values = empty((self._rows * product.F,), np.float32)
        self._block = slice(0, 0)

    def elements(self, place: slice) -> Vector:
        """Some elements of the vector, all of one of the products; they may be written over."""
        if place.start >= self._block.stop or place.start < self._block.start:
            self._multiply(place.start)
        return self._values[place.start - self._block.start : place.stop - self._block.start]

    def _multiply(self, element: int) -> None:
        """Compute the product that has an element of the vector."""
        product, rows = self._product, self._rows
        size = rows * product.F
        number = (element - product.start) // size
        columns = slice(number * rows, (number + 1) * rows)
        x = like((len(self._x), product.C), self._x_order)
        x[:, columns] = self._x[:, columns.start - self._first_column : columns.stop - self._first_column]
        product.multiply(x[:, columns], self._dy, self._values.reshape(rows, product.F))
        self._block = slice(product.start + number * size, product.start + (number + 1) * size)


def known_or_product(
    known: Mapping[Subtree, Vector], leaves: Mapping[int, Leaf], place: slice, subtree: Subtree
) -> Vector | None:
    """Some elements of a subtree's sum, if it is known, or one of ``leaves``; otherwise None."""
    if subtree in known:
        return known[subtree][place]
    return leaves[subtree[0]].elements(place) if subtree[1] - subtree[0] == 1 else None


def in_fortran_order(array: Array) -> bool:
    """Whether a contiguous array is in Fortran order only."""
    return bool(array.flags.f_contiguous and not array.flags.c_contiguous)


def like(shape: tuple[int, int], fortran: int) -> Array:
    """An uninitialised array in Fortran order or in C order."""
    return empty(shape[::-1], np.float32).T if fortran else empty(shape, np.float32)
