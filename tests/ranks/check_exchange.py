"""Run under mpirun: all exchanges, the exact ones bit for bit against the one tree."""

import sys

import numpy as np

import dpcnn.parallel.start
from dpcnn.base.timing import Timer
from dpcnn.parallel.exact import ExactExchange
from dpcnn.parallel.exchange import AllreduceExchange
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.tree import middle

comm = dpcnn.parallel.start.world()
assert comm.size == int(sys.argv[1])
SIZE = 16_381  # a prime: parts are never even


def leaf(number: int, step: int) -> np.ndarray:
    """A microbatch's gradient, of values whose sums round."""
    values = np.random.default_rng((number, step)).standard_normal(SIZE) * 10.0 ** (number % 5)
    return values.astype(np.float32)


def tree(lo: int, hi: int, step: int) -> np.ndarray:
    if hi - lo == 1:
        return leaf(lo, step)
    m = middle(lo, hi)
    return tree(lo, m, step) + tree(m, hi, step)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


for kind, bitwise_or in ((ExactExchange, same), (AllreduceExchange, close)):
    exchange = kind(comm, SIZE, Timer())
    vector = shared_array(exchange.node, (SIZE,), np.float32)
    for step, leaves in enumerate((1, 2, 3, 4, 5, 7, 8, 13, 3, 16)):
        expected = tree(0, leaves, step)
        total = exchange.sum([1] * leaves, lambda number, out, keep, step=step: np.copyto(out, leaf(number, step)))
        bitwise_or(total, expected[exchange.shard])
        vector[exchange.shard] = total
        exchange.publish(vector)
        bitwise_or(vector, expected)
        collected = exchange.gather(vector[exchange.shard])
        assert (collected is None) == (comm.rank > 0)
        part = np.empty_like(vector[exchange.shard])
        exchange.scatter(collected, part)
        bitwise_or(part, expected[exchange.shard])
comm.barrier()
print(f"rank {comm.rank}: {__name__} is content")
