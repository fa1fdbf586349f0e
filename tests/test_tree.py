"""The split and the tree, for every combination of counts that hypothesis thinks of."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threads import run_ranks

from dpcnn.base.timing import Timer
from dpcnn.parallel import layout
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exact import ExactExchange
from dpcnn.parallel.layout import Layout
from dpcnn.parallel.tree import chunks, interval, middle, owned, split_evenly, subtrees, sums_held, tree_sum


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Vectors of a few elements, in blocks of 3: so that there are some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BLOCK", 3)
        yield


leaves = st.integers(1, 200)
ranks = st.integers(1, 64)


@given(count=st.integers(0, 10_000), parts=ranks)
def test_shares_cover_everything_once_and_evenly(count, parts):
    bounds = split_evenly(count, parts)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == count and len(sizes) == parts
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 1
    assert [interval(count, parts, part) for part in range(parts)] == list(itertools.pairwise(bounds))


@given(count=st.integers(1, 5000), length=st.integers(1, 300))
def test_cut_covers_everything_once(count, length):
    runs = chunks(count, length)
    assert [n for start, stop in runs for n in range(start, stop)] == list(range(count))
    assert all(stop - start == length for start, stop in runs[:-1])


@given(leaves)
def test_the_tree_parts_at_the_largest_power_of_two(count):
    if count > 1:
        width = middle(0, count)
        assert width < count <= 2 * width and width & (width - 1) == 0


def formula(node):
    """The sum of a node as text, straight from the definition of the tree."""
    lo, hi = node
    if hi - lo == 1:
        return str(lo)
    width = 1
    while 2 * width < hi - lo:
        width *= 2
    return f"({formula((lo, lo + width))}+{formula((lo + width, hi))})"


@given(leaves, ranks)
def test_ranks_and_exchange_together_form_the_one_tree(count, size):
    nodes = owned(count, size)
    assert [leaf for theirs in nodes for lo, hi in theirs for leaf in range(lo, hi)] == list(range(count))
    local = {node: formula(node) for theirs in nodes for node in theirs}
    assert tree_sum((0, count), local.get, lambda left, right: f"({left}+{right})") == formula((0, count))


@given(leaves, st.data())
def test_subtrees_are_the_largest(count, data):
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    found = subtrees(count, start, stop)
    assert [leaf for lo, hi in found for leaf in range(lo, hi)] == list(range(start, stop))
    every_node = set()

    def collect(lo, hi):
        every_node.add((lo, hi))
        if hi - lo > 1:
            collect(lo, middle(lo, hi))
            collect(middle(lo, hi), hi)

    collect(0, count)
    inside = {node for node in every_node if start <= node[0] and node[1] <= stop}
    largest = {n for n in inside if not any(m != n and m[0] <= n[0] and n[1] <= m[1] for m in inside)}
    assert set(found) == largest


def test_a_ragged_batch_by_hand():
    assert formula((0, 5)) == "(((0+1)+(2+3))+4)"
    assert formula((0, 7)) == "(((0+1)+(2+3))+((4+5)+6))"
    assert owned(7, 3) == [[(0, 2)], [(2, 4)], [(4, 7)]]
    assert owned(5, 3) == [[(0, 1)], [(1, 2), (2, 3)], [(3, 4), (4, 5)]]
    assert owned(2, 4) == [[], [(0, 1)], [], [(1, 2)]]


@st.composite
def layouts(draw):
    """Vectors of up to 40 elements on up to six nodes of up to four ranks: more ranks than elements too."""
    ends = list(itertools.accumulate(draw(st.lists(st.integers(1, 4), min_size=1, max_size=6)), initial=0))
    return Layout(draw(st.integers(1, 40)), tuple(itertools.pairwise(ends)))


@given(layouts())
def test_parts_make_up_the_vector_and_so_do_the_slices_of_each_node(layout):
    whole = list(range(layout.size))
    assert [e for rank in range(layout.ranks) for e in range(*layout.shard(rank))] == whole
    for number, (first, end) in enumerate(layout.nodes):
        assert [e for rank in range(first, end) for e in range(*layout.slice(rank))] == whole
        assert all(layout.node_of(rank) == number for rank in range(first, end))


def deliver(messages, sending, receiving):
    """What MPI_Alltoallv would do with the messages of all ranks."""
    for giver, message in enumerate(messages):
        for taker, (count, start) in enumerate(zip(*message.sent, strict=True)):
            counts, places = messages[taker].received
            assert counts[giver] == count
            receiving[taker][places[giver] : places[giver] + count] = sending[giver][start : start + count]


@given(layouts(), st.integers(1, 30))
def test_each_rank_receives_every_node_s_sums_of_its_part(layout, count):
    everyone, of_nodes = range(layout.ranks), layout.of_nodes(count)
    assert [leaf for held in of_nodes for lo, hi in held for leaf in range(lo, hi)] == list(range(count))
    messages = [layout.sums(count, rank) for rank in everyone]
    for number in range(max(map(len, of_nodes))):
        sending = []
        for rank in everyone:
            node = layout.node_of(rank)
            holds = number < len(of_nodes[node])
            sending.append([(node, element) for element in range(*layout.slice(rank))] if holds else [])
        widths = [stop - start for start, stop in map(layout.shard, everyone)]
        receiving = [[None] * (len(layout.nodes) * width) for width in widths]
        deliver([theirs[number] for theirs in messages], sending, receiving)
        for rank in everyone:
            elements = range(*layout.shard(rank))
            holding = [node for node, held in enumerate(of_nodes) if number < len(held)]
            expected = [(n, e) if n in holding else None for n in range(len(layout.nodes)) for e in elements]
            assert receiving[rank] == expected


@given(layouts())
def test_each_node_receives_the_parts_that_others_updated(layout):
    everyone = range(layout.ranks)
    sending = [["new" if e in range(*layout.shard(rank)) else "old" for e in range(layout.size)] for rank in everyone]
    receiving = [["old"] * layout.size for _ in layout.nodes]
    for rank in everyone:
        receiving[layout.node_of(rank)][slice(*layout.shard(rank))] = sending[rank][slice(*layout.shard(rank))]
    deliver(
        [layout.updates(rank) for rank in everyone], sending, [receiving[layout.node_of(rank)] for rank in everyone]
    )
    assert receiving == [["new"] * layout.size] * len(layout.nodes)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 13, 32])
def test_a_rank_keeps_one_gradient_more_for_each_doubling_of_its_leaves(count):
    exchange, places = ExactExchange(SerialComm(), 5, Timer()), set()

    def gradient(number, out, keep):
        places.add(out.ctypes.data)
        out.fill(1)

    for _ in range(2):  # the second step needs no further memory
        assert exchange.sum([1] * count, gradient).tolist() == [count] * 5
        assert len(places) == count.bit_length()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_gradients_that_a_rank_holds(ranks):
    def rank(comm):
        held = []
        for leaves in (1, 2, 3, 5, 8, 13, 31, 64):
            exchange = ExactExchange(comm, 4, Timer())
            exchange.sum([1] * leaves, lambda number, out, keep: out.fill(number))
            held.append(len(exchange._buffers) + len(exchange._spares))
        return held

    expected = [sums_held(leaves, ranks) for leaves in (1, 2, 3, 5, 8, 13, 31, 64)]
    assert [max(held) for held in zip(*run_ranks([ranks], rank), strict=True)] == expected
    assert ranks > 1 or expected == [1, 2, 2, 3, 4, 4, 5, 7]
