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
from dpcnn.parallel.products import Parcel, Product, Products, incoming, length, message, needed_rows, outgoing, span
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.tree import Subtree, chunks, tree_sum

AT_ONCE = 1 << 17
"""The most elements of products that are computed at a time, for all leaves together, unless one of each leaf has more:
so they stay in the processor's cache."""


class Factors:
    """The factors of the leaves of all nodes, for steps with leaves of the same sizes.

    The ranks of a node receive the factors of other nodes into memory that they share, each factor once.

    Attributes:
        holes: the elements of the vector that are computed from factors.
    """

    def __init__(
        self, comm: SerialComm, node: SerialComm, layout: Layout, products: Products, sizes: Sequence[int]
    ) -> None:
        """``products``: those for which :func:`dpcnn.parallel.products.pays` is true."""
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
            known: the sums of the ranks of the node, (size,); written over in the shard, also with the total.
        """
        self._comm.wait()
        self._node.barrier()  # its ranks have received all factors, and need no sums outside their shards any more
        total = next(iter(known.values()))[shard] if known else empty((shard.stop - shard.start,), np.float32)
        start = 0
        for part in parts:
            width = part.stop - part.start
            total[part.start - shard.start : part.stop - shard.start] = sums[start : start + width]
            start += width
        for layer, product in self._products.items():
            self._add_up(layer, product, known, shard, total)
        return total

    def _add_up(
        self, layer: int, product: Product, known: Mapping[Subtree, Vector], shard: slice, total: Vector
    ) -> None:
        """Add up the elements of a shard that belong to a layer, from sums of the node and products of other leaves."""
        parcels = [parcel for parcel in self._incoming if parcel.layer == layer]
        leaves = {
            parcel.leaf: Leaf(
                product, self._sizes[parcel.leaf], parcel, self._inbox, shard, AT_ONCE // (len(parcels) * product.F)
            )
            for parcel in parcels
        }
        start, count = overlap(span(product), (shard.start, shard.stop))
        edges = {start, start + count}.union(*(leaf.edges for leaf in leaves.values()))
        for edge, end in pairwise(sorted(edge for edge in edges if start <= edge <= start + count)):
            value = partial(known_or_product, known, leaves, slice(edge, end))
            found, place = tree_sum((0, len(self._sizes)), value, iadd), total[edge - shard.start : end - shard.start]
            if not np.may_share_memory(found, place):  # else it is there
                place[...] = found


class Leaf:
    """The product of a leaf of another node, some rows at a time, in the order of the vector.

    Attributes:
        edges: the elements at which these parts begin and end.
    """

    def __init__(
        self, product: Product, images: int, parcel: Parcel, inbox: Vector, elements: slice, most_rows: int
    ) -> None:
        """For some elements of the vector, with at most so many rows at a time, but at least one product."""
        self._product, self._rows = product, product.rows(images)
        message, size = inbox[parcel.place], images * product.F
        self._first_column = parcel.columns[0]
        self._x_order, dy_order = divmod(int(message[0]), 2)
        self._x = message[1 + size :].reshape(images, -1)
        self._dy = like((images, product.F), dy_order)
        self._dy[...] = message[1 : 1 + size].reshape(self._dy.shape)
        first, end = needed_rows(product, images, (elements.start, elements.stop))
        length = max(1, most_rows // self._rows) * self._rows
        self._parts = [(first + start, first + stop) for start, stop in chunks(end - first, length)]
        self.edges = [product.start + row * product.F for part in self._parts for row in part]
        self._values, self._begin, self._end = empty((0,), np.float32), 0, 0

    def elements(self, place: slice) -> Vector:
        """Some elements of the vector, all of one part; they may be written over."""
        if not self._begin <= place.start < self._end:
            self._multiply(place.start)
        return self._values[place.start - self._begin : place.stop - self._begin]

    def _multiply(self, element: int) -> None:
        """Compute the part that has an element of the vector."""
        product, row = self._product, (element - self._product.start) // self._product.F
        start, stop = next((start, stop) for start, stop in self._parts if start <= row < stop)
        x = like((len(self._x), product.C), self._x_order)  # with the rows as far apart as those of the leaf's own rank
        x[:, start:stop] = self._x[:, start - self._first_column : stop - self._first_column]
        self._values = empty(((stop - start) * product.F,), np.float32)
        product.multiply(x[:, start:stop], self._dy, self._values.reshape(-1, product.F), self._rows)
        self._begin, self._end = product.start + start * product.F, product.start + stop * product.F


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
