"""Random streams: pure functions of their names, pinned so that no release changes a run."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpcnn.streams import ORDER, WEIGHTS, generator, permutation, philox


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), samples=st.integers(1, 2000))
def test_an_epoch_s_order_is_a_permutation(seed, epoch, samples):
    np.testing.assert_array_equal(np.sort(permutation(seed, epoch, samples)), np.arange(samples))


def test_orders_are_pinned_and_differ():
    assert permutation(0, 0, 10).tolist() == [4, 3, 7, 6, 8, 9, 5, 2, 0, 1]
    assert not np.array_equal(permutation(0, 0, 100), permutation(0, 1, 100))
    assert not np.array_equal(permutation(0, 0, 100), permutation(1, 0, 100))


def test_streams_of_different_purposes_differ():
    streams = [philox(0, purpose, number).random_raw(4).tolist() for purpose in (WEIGHTS, ORDER) for number in (0, 1)]
    assert len({tuple(stream) for stream in streams}) == 4
    assert generator(5, WEIGHTS, 2).standard_normal() == generator(5, WEIGHTS, 2).standard_normal()


def test_every_place_is_equally_likely_to_come_first():
    first = np.bincount([permutation(seed, 0, 8)[0] for seed in range(4000)], minlength=8)
    assert abs(first - 500).max() < 5 * np.sqrt(500)
