"""The loss against its definition and finite differences."""

import numpy as np
import pytest

from dpcnn.nn import reference
from dpcnn.nn.losses import CrossEntropy

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3])
def test_cross_entropy(smoothing):
    logits, labels = RNG.standard_normal((8, 10)), RNG.integers(0, 10, 8)
    targets = np.full((8, 10), smoothing / 10)
    targets[np.arange(8), labels] += 1 - smoothing
    losses, dlogits = CrossEntropy(smoothing).loss_and_gradient(logits, labels)
    assert losses.shape == (8,)
    assert losses.sum() == pytest.approx(reference.cross_entropy(logits, targets), rel=1e-12)

    direction = RNG.standard_normal(logits.shape)
    numeric = (
        sum(sign * CrossEntropy(smoothing).loss(logits + sign * 1e-6 * direction, labels).sum() for sign in (1, -1))
        / 2e-6
    )
    assert (dlogits * direction).sum() == pytest.approx(numeric, rel=1e-7)


def test_the_recipe_s_targets_are_0_991_and_0_001():
    _, dlogits = CrossEntropy(0.01).loss_and_gradient(np.zeros((1, 10)), np.array([4]))
    targets = 0.1 - dlogits[0]
    np.testing.assert_allclose(targets, [0.991 if k == 4 else 0.001 for k in range(10)], rtol=1e-12)


def test_huge_logits_stay_finite():
    logits = np.array([[1e30, -1e30, 0.0]], np.float32)
    losses, dlogits = CrossEntropy(0.0).loss_and_gradient(logits, np.array([0]))
    assert losses[0] == 0 and np.isfinite(dlogits).all()
