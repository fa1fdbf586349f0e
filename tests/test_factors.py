"""Factors between nodes: each arrives once, and their products have the bits of the leaf's own rank."""

import itertools
from unittest import mock

import numpy as np
import pytest
from conftest import many
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import factors_sent, run_ranks

from dpcnn.base.timing import Timer
from dpcnn.nn import layers
from dpcnn.nn.layers import WeightProduct, weight_gradient
from dpcnn.parallel.exact import ExactExchange
from dpcnn.parallel.factors import AT_ONCE
from dpcnn.parallel.layout import Layout
from dpcnn.parallel.products import Counts, copies_pay, incoming, length, message, needed_rows, outgoing, pays

NODES = st.lists(st.integers(1, 3), min_size=1, max_size=4) | st.just([1] * 8)
SHAPES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60), st.integers(0, 50)), min_size=1, max_size=3)
SIZES = st.tuples(st.integers(1, 12), st.integers(2, 40), st.integers(2, 40)).map(
    lambda drawn: [*[drawn[1]] * drawn[0], min(drawn[1:])]
)


def placed(shapes):
    """Products (C, F), each behind a gap in the vector; and the size of the vector."""
    products, end = {}, 0
    for layer, (C, F, gap) in enumerate(shapes):
        products[layer] = WeightProduct(end + gap, C, F)
        end += gap + C * F
    return products, end + 7


def layout_of(size, nodes):
    return Layout(size, tuple(itertools.pairwise(itertools.accumulate(nodes, initial=0))))


@given(SHAPES, SIZES, NODES)
def test_each_node_receives_each_factor_that_it_needs_once(shapes, sizes, nodes):
    products, size = placed(shapes)
    layout = layout_of(size, nodes)
    everyone = range(layout.ranks)
    sent = [outgoing(layout, products, sizes, rank) for rank in everyone]
    received = [incoming(layout, products, sizes, node) for node in range(len(nodes))]
    messages = [message(layout, rank, sent[rank], received[layout.node_of(rank)]) for rank in everyone]
    for rank, other in itertools.product(everyone, repeat=2):
        assert messages[rank].sent[0][other] == messages[other].received[0][rank]
    for node, (first, end) in enumerate(layout.nodes):
        boxes = [place for rank in range(first, end) for place in zip(*messages[rank].received, strict=True)]
        filled = sorted(element for count, start in boxes for element in range(start, start + count))
        assert filled == list(range(length(received[node])))
        for rank in everyone:
            there = [(p.leaf, p.layer, p.columns) for p in received[node][rank]]
            assert there == [(p.leaf, p.layer, p.columns) for p in sent[rank][node]]


@given(st.integers(1, 100_000), st.integers(1, 40), NODES, st.booleans())
def test_the_sums_that_a_node_receives_are_counted(size, leaves, nodes, copied):
    layout = layout_of(size, nodes)
    if copied:
        layout = layout._replace(ranges=((0, size),) * len(nodes))
    received = [
        sum(sum(message.received[0]) for rank in range(first, end) for message in layout.sums(leaves, rank))
        for first, end in layout.nodes
    ]
    assert max(received) == layout.received(leaves)


@given(SHAPES, st.integers(2, 40), NODES)
def test_whole_products_cover_the_elements_of_each_node(shapes, images, nodes):
    products, size = placed(shapes)
    layout = layout_of(size, nodes)
    for product, node in itertools.product(products.values(), range(len(nodes))):
        wanted = set(range(*layout.elements(node))) & set(range(product.start, product.start + product.C * product.F))
        first, end = needed_rows(product, images, layout.elements(node))
        assert wanted <= set(range(product.start + first * product.F, product.start + end * product.F))
        assert first % product.rows(images) == end % product.rows(images) == 0 and end <= product.C
        assert bool(wanted) == (first < end)


def gradient(products, size, images, number):
    """The gradient of a leaf, and its factors in any memory order."""
    rng = np.random.default_rng(number)
    out = rng.random(size, np.float32)
    factors = {}
    for layer, product in products.items():
        x, dy = (rng.standard_normal((images, side)).astype(np.float32) for side in (product.C, product.F))
        x, dy = (np.asfortranarray(array) if rng.random() < 0.5 else array for array in (x, dy))
        place = slice(product.start, product.start + product.C * product.F)
        weight_gradient(x, dy, out[place].reshape(product.C, product.F), product.rows(images))
        factors[layer] = x, dy
    return out, factors


def sums(products, size, sizes, nodes):
    """The sum of all leaves, from the shards of all ranks; twice, as buffers are used again."""

    def rank(comm):
        exchange = ExactExchange(comm, size, Timer(), None, products, sizes)

        def leaf(number, out, keep):
            out[...], factors = gradient(products, size, sizes[number], number)
            for layer, (x, dy) in factors.items() if keep else ():
                keep(layer, x, dy)

        found = []
        for _ in range(2):
            found.append(exchange.sum(sizes, leaf).copy())
            comm.barrier()
        gathered = exchange.gather(found[-1])
        part = np.empty_like(found[-1])
        exchange.scatter(gathered, part)
        assert part.tobytes() == found[-1].tobytes() and (comm.rank or len(gathered) == size)
        return exchange.shard, exchange.unique, found

    ranks = run_ranks(nodes, rank)
    unique = [[shares[step][own] for _, own, shares in ranks] for step in range(2)]
    totals = [np.concatenate(parts) for parts in unique]
    for shard, _, shares in ranks:  # on other nodes too, where each has the whole
        for total, share in zip(totals, shares, strict=True):
            np.testing.assert_array_equal(share.view(np.uint32), total[shard].view(np.uint32))
    return [total.tobytes() for total in totals]


def check_bits(shapes, sizes, nodes):
    products, size = placed(shapes)
    alone = sums(products, size, sizes, [1])
    for factors, copied in itertools.product((False, True), repeat=2):
        with factors_sent(factors, copied):
            assert sums(products, size, sizes, nodes) == alone


AMOUNTS = st.sampled_from([1, 2000, AT_ONCE])  # of elements at a time: one product, some, or all


@settings(max_examples=25, deadline=None)
@given(SHAPES, SIZES, NODES, AMOUNTS)
def test_sums_have_the_bits_of_one_rank(shapes, sizes, nodes, at_once):
    with mock.patch("dpcnn.parallel.factors.AT_ONCE", at_once):
        check_bits(shapes, sizes, nodes)


@pytest.mark.slow
@pytest.mark.parametrize("small", [20_000, 60_000, 1_000_000])
@settings(max_examples=many(100), deadline=None)
@given(shapes=SHAPES, sizes=SIZES, nodes=NODES, at_once=AMOUNTS)
def test_sums_have_the_bits_of_one_rank_in_many_cases(small, shapes, sizes, nodes, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "TUNING", layers.TUNING._replace(small_product=small))
        patch.setattr("dpcnn.parallel.factors.AT_ONCE", at_once)
        layers.block_rows.cache_clear()
        check_bits(shapes, sizes, nodes)
    layers.block_rows.cache_clear()


@pytest.mark.parametrize("nodes", [[1] * n for n in (2, 3, 4, 8)] + [[2, 1], [3, 3]])
def test_the_layer_of_simple_cnn_has_the_bits_of_one_rank(nodes):
    check_bits([(3136, 512, 900)], [32, 32, 32, 32, 9], nodes)


def test_factors_leave_while_the_last_gradient_is_computed():
    (products, size), sizes = placed([(300, 60, 5), (200, 40, 0)]), [3, 3, 3, 3]

    def rank(comm):
        sent = []

        def leaf(number, out, keep):
            out[...], factors = gradient(products, size, sizes[number], number)
            for layer, (x, dy) in factors.items():
                keep(layer, x, dy)
                sent.append(isend.call_count)

        exchange = ExactExchange(comm, size, Timer(), None, products, sizes)
        with mock.patch.object(comm, "isend", wraps=comm.isend) as isend:
            exchange.sum(sizes, leaf)
        return sent

    with factors_sent(chosen=True, copied=True):
        assert run_ranks([1, 1], rank) == [[0, 0, 0, 1]] * 2


LINEAR = WeightProduct(0, 3136, 512)  # of simple-cnn
LARGE = WeightProduct(0, 200_704, 1024)


@pytest.mark.parametrize(
    ("product", "sizes", "nodes", "ranks", "chosen"),
    [
        (LINEAR, [32] * 4, 2, 2, True),
        (LINEAR, [64] * 2, 2, 2, True),
        (LINEAR, [32] * 4, 1, 2, False),  # no network
        (LINEAR, [32] * 8, 2, 2, False),  # too many multiplications
        (LINEAR, [32] * 8, 2, 4, True),  # by more ranks
        (WeightProduct(0, 400, 120), [32] * 4, 2, 2, False),  # too few bytes
        (WeightProduct(0, 3137, 512), [32] * 4, 2, 2, False),  # the products have all rows, as 3137 is a prime
        (LINEAR, [32] * 512, 128, 128, False),  # the factors of so many leaves are more than the sums
    ],
)
def test_the_rule_depends_on_shapes_and_counts(product, sizes, nodes, ranks, chosen):
    assert pays(product, Counts(sizes, nodes, ranks)) == chosen


@pytest.mark.parametrize(
    ("rest", "product", "sizes", "nodes", "ranks", "chosen"),
    [
        (100_000, LINEAR, [64] * 2, 2, 2, True),
        (100_000, LINEAR, [64] * 2, 1, 2, False),  # no network
        (100_000, LINEAR, [64] * 4, 4, 4, False),  # too many multiplications
        (100_000, LINEAR, [32] * 4, 4, 8, True),  # by more ranks, of fewer images
        (100_000, WeightProduct(0, 400, 120), [64] * 2, 2, 2, False),  # no factors: parameters are as many as sums
        (4_000_000, LINEAR, [32] * 4, 4, 8, False),  # most elements are sums
        (50_000_000, LINEAR, [64] * 2, 2, 2, False),  # too many updates
        (100_000, LARGE, [4] * 10, 10, 10, True),
        (100_000, LARGE, [4] * 12, 12, 12, False),  # without factors, a node would receive more than 2^31 elements
    ],
)
def test_the_rule_for_copies_depends_on_shapes_and_counts(rest, product, sizes, nodes, ranks, chosen):
    assert copies_pay(rest + product.C * product.F, {0: product}, Counts(sizes, nodes, ranks)) == chosen
