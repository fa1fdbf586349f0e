"""The split and the tree, for every combination of counts that hypothesis thinks of."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dpcnn.parallel.exchange import owned
from dpcnn.parallel.split import cut, middle, shares, subtrees, tree_sum

leaves = st.integers(1, 200)
ranks = st.integers(1, 64)


@given(count=st.integers(0, 10_000), parts=ranks)
def test_shares_cover_everything_once_and_evenly(count, parts):
    bounds = shares(count, parts)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    assert bounds[0] == 0 and bounds[-1] == count and len(sizes) == parts
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 1


@given(count=st.integers(1, 5000), length=st.integers(1, 300))
def test_cut_covers_everything_once(count, length):
    runs = cut(count, length)
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
