"""The one order in which gradients are added: pure functions of counts.

A step's microbatches are the leaves of one binary tree, a function of their number G alone::

    tree(lo, hi) = leaf lo                       where hi - lo = 1
                 = tree(lo, m) + tree(m, hi)     m - lo: the largest power of two below hi - lo

Each rank has a contiguous run of leaves. It adds up the largest subtrees inside its run; the
exchange adds these sums along the rest of the same tree. So the sum has the same bits, whichever rank
computed which leaf. (Floating-point addition is commutative but not associative.)
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

Subtree = tuple[int, int]
"""tree(lo, hi), as (lo, hi)."""

Interval = tuple[int, int]
"""Consecutive indices, as (start, stop)."""

T = TypeVar("T")


def split_evenly(count: int, parts: int) -> list[int]:
    """The bounds of ``parts`` contiguous intervals of ``range(count)``: parts + 1 numbers, 0 first.

    Part r is ``range(bounds[r], bounds[r + 1])``; sizes differ by at most one, and may be 0.
    """
    return [part * count // parts for part in range(parts + 1)]


def interval(count: int, parts: int, part: int) -> Interval:
    """One of the intervals of :func:`split_evenly`."""
    return part * count // parts, (part + 1) * count // parts


def chunks(count: int, length: int) -> list[Interval]:
    """``range(count)`` in consecutive intervals of ``length``; the last may be shorter."""
    return [(start, min(start + length, count)) for start in range(0, count, length)]


def middle(lo: int, hi: int) -> int:
    """The index at which tree(lo, hi) splits."""
    return lo + (1 << ((hi - lo - 1).bit_length() - 1))


def subtrees(leaves: int, start: int, stop: int) -> list[Subtree]:
    """The largest subtrees of tree(0, leaves) inside [start, stop), left to right.

    They cover it exactly.
    """

    def inside(lo: int, hi: int) -> list[Subtree]:
        if start <= lo and hi <= stop:
            return [(lo, hi)]
        if hi <= start or stop <= lo:
            return []
        m = middle(lo, hi)
        return inside(lo, m) + inside(m, hi)

    return inside(0, leaves) if start < stop else []


def tree_sum(subtree: Subtree, value: Callable[[Subtree], T | None], add: Callable[[T, T], T]) -> T:
    """The sum of a subtree: ``value(subtree)`` if that is known, otherwise the sum of its two halves.

    Args:
        subtree: the subtree to add up.
        value: a subtree's known sum, or None; never None for a leaf.
        add: combines a left and a right sum; called in the order of the tree.
    """
    known = value(subtree)
    if known is not None:
        return known
    lo, hi = subtree
    m = middle(lo, hi)
    left = tree_sum((lo, m), value, add)
    return add(left, tree_sum((m, hi), value, add))


@cache
def owned(leaves: int, ranks: int) -> Sequence[list[Subtree]]:
    """For each rank, the subtrees of tree(0, leaves) that it adds up."""
    bounds = split_evenly(leaves, ranks)
    return [subtrees(leaves, bounds[rank], bounds[rank + 1]) for rank in range(ranks)]


def sums_held(leaves: int, ranks: int) -> int:
    """The most gradients that a rank holds at once.

    These are the sums of all its subtrees except the largest, and the partial sums of the largest: as many as its
    number of leaves has binary digits.
    """
    subtrees_of = owned(leaves, ranks)
    digits = max((hi - lo).bit_length() for subtrees in subtrees_of for lo, hi in subtrees)
    return max(map(len, subtrees_of)) + digits - 1
