"""The functions whose bits do not depend on the C library, against the C library's."""

from statistics import NormalDist

import numpy as np
import pytest

from dpcnn.base import elementary

ULP = np.finfo(np.float64).eps


@pytest.mark.parametrize(
    ("ours", "theirs", "x"),
    [
        (elementary.portable_exp, np.exp, np.linspace(-50, 50, 20_001)),
        (elementary.portable_log, np.log, np.geomspace(1e-20, 1e20, 20_001)),
        (elementary.portable_log, np.log, np.linspace(0.5, 1.5, 20_001)),
    ],
)
def test_exp_and_log_are_right_to_the_last_bits(ours, theirs, x):
    np.testing.assert_allclose(ours(x), theirs(x), rtol=4 * ULP, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), [(elementary.portable_sin, np.sin), (elementary.portable_cos, np.cos)])
def test_sine_and_cosine_are_right_to_the_last_bits(ours, theirs):
    x = np.linspace(-1000, 1000, 50_001)
    np.testing.assert_allclose(ours(x), theirs(x), rtol=0, atol=2 * ULP)


def test_powers():
    base = np.linspace(0.5, 4, 1001)
    np.testing.assert_allclose(elementary.portable_power(base, -0.75), base**-0.75, rtol=1e-14)
    np.testing.assert_allclose(elementary.portable_power(1.1, base), 1.1**base, rtol=1e-14)
    out = np.empty(1001, np.float32)
    assert elementary.portable_power(base, 2, out) is out
    np.testing.assert_allclose(out, base**2, rtol=1e-7)
    for exponent in (0, 1, 2, 3, 999, 100_000):
        assert elementary.portable_whole_power(0.999, exponent) == pytest.approx(0.999**exponent, rel=1e-10)
    assert elementary.portable_whole_power(10.0, 1000) == float("inf")


def test_normal_draws_are_quantiles_of_the_raw_numbers():
    draws = np.empty((100, 200), np.float32)
    elementary.portable_normal(np.random.Generator(np.random.Philox(5)), draws)
    uniform = ((np.random.Philox(5).random_raw(20_000) >> np.uint64(12)) + 0.5) * 2.0**-52
    expected = [NormalDist().inv_cdf(p) for p in uniform.tolist()]
    np.testing.assert_allclose(draws.ravel(), expected, rtol=2.5e-7, atol=1e-9)
    assert np.abs(draws).max() > 3.5, "the tails are there"


def test_the_far_tails_of_the_normal_distribution():
    class Raw:
        bit_generator = property(lambda self: self)

        def random_raw(self, count):
            return np.array([0, 2**64 - 1, 1 << 40], np.uint64)

    tails = [NormalDist().inv_cdf(p) for p in (2.0**-53, ((1 << 28) + 0.5) * 2.0**-52)]
    expected = [tails[0], -tails[0], tails[1]]
    draws = np.empty(3, np.float32)
    elementary.portable_normal(Raw(), draws)
    np.testing.assert_allclose(draws, expected, rtol=2.5e-7)


def test_native_functions_are_numpy_s():
    if elementary.startup.numerics == "native":
        assert (elementary.exp, elementary.sin, elementary.cos, elementary.power) == (np.exp, np.sin, np.cos, np.power)
        assert elementary.whole_power(0.9, 7) == 0.9**7
