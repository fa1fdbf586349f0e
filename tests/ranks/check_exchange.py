"""Run under mpirun: both exchanges, the exact one bit for bit against the one tree."""

import sys

import numpy as np

import dpcnn.parallel.comm
from dpcnn.parallel.exchange import AllreduceExchange, ExactExchange
from dpcnn.parallel.split import middle

comm = dpcnn.parallel.comm.world()
assert comm.size == int(sys.argv[1])
SIZE = 1009  # a prime: parts are never even


def leaf(number: int, step: int) -> np.ndarray:
    """A microbatch's gradient, of values whose sums round."""
    return np.random.default_rng((number, step)).standard_normal(SIZE).astype(np.float32) * np.float32(
        10.0 ** (number % 5)
    )


def tree(lo: int, hi: int, step: int) -> np.ndarray:
    if hi - lo == 1:
        return leaf(lo, step)
    m = middle(lo, hi)
    return tree(lo, m, step) + tree(m, hi, step)


exact, plain = ExactExchange(comm, SIZE), AllreduceExchange(comm, SIZE)
for step, leaves in enumerate((1, 2, 3, 4, 5, 7, 8, 13, 3, 16)):
    expected = tree(0, leaves, step)
    for exchange in (exact, plain):
        for (lo, hi), row in exchange.rows(leaves):
            row[...] = tree(lo, hi, step)
        total = exchange.sum(leaves)
        if exchange is exact:
            assert (total.view(np.uint32) == expected[exchange.part].view(np.uint32)).all(), (step, leaves)
        np.testing.assert_allclose(total, expected[exchange.part], rtol=1e-3, atol=1e-2)
        vector = np.zeros(SIZE, np.float32)
        vector[exchange.part] = total
        exchange.share(vector)
        if exchange is exact:
            assert (vector == expected).all()
        collected = exchange.collect(total)
        assert (collected is None) == (comm.rank > 0)
        part = np.empty_like(total)
        exchange.spread(collected, part)
        np.testing.assert_allclose(part, expected[exchange.part], rtol=1e-3, atol=1e-2)
comm.barrier()
print(f"rank {comm.rank} of {comm.size} is content")
