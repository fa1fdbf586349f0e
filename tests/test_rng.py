"""Random streams: pure functions of their names, pinned so that no release changes a run."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpcnn.base.rng import ORDER, WEIGHTS, SampleRng, generator, permutation, philox


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


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.data())
def test_a_sample_s_draw_is_its_own_in_any_batch(samples, data):
    place = data.draw(st.integers(0, len(samples) - 1))
    count = data.draw(st.integers(1, 40))
    together = SampleRng(7, 2, np.array(samples)).bits(3, count)
    assert together.shape == (len(samples), count) and together.dtype == np.uint16
    np.testing.assert_array_equal(
        together[place], SampleRng(7, 2, np.array(samples[place : place + 1])).bits(3, count)[0]
    )


def test_draws_are_pinned_and_differ_by_all_that_names_them():
    assert SampleRng(0, 0, np.array([5])).bits(1, 4).tolist() == [[55934, 53546, 51620, 61458]]
    named = [(0, 0, 5, 1), (1, 0, 5, 1), (0, 1, 5, 1), (0, 0, 6, 1), (0, 0, 5, 2)]
    draws = {SampleRng(s, e, np.array([n])).bits(layer, 16).tobytes() for s, e, n, layer in named}
    assert len(draws) == len(named)


def test_draws_are_uniform():
    values = SampleRng(3, 1, np.arange(2000)).bits(0, 50) / 65536
    assert abs(values.mean() - 0.5) < 5 / np.sqrt(12 * values.size)
    assert np.abs(values.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * 2000)
    neighbours = np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(values.size)
