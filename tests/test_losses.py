"""The losses against their definitions and finite differences."""

import numpy as np
import pytest

from dpcnn.config import Config, from_dict
from dpcnn.errors import ConfigError
from dpcnn.nn import reference
from dpcnn.nn.losses import CLASSES, LOSSES, MULTILABEL, CrossEntropy, Huber, SigmoidCrossEntropy, SquaredError

RNG = np.random.default_rng(3)
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 3.0)
EACH = [
    CrossEntropy(0.0),
    CrossEntropy(0.2),
    CrossEntropy(0.2, WEIGHTS),
    SigmoidCrossEntropy(),
    SquaredError(),
    Huber(0.7),
    Huber(100.0),
]


def targets(kind: str, samples: int = 9, outputs: int = 5):
    if kind == CLASSES:
        return RNG.integers(0, outputs, samples)
    if kind == MULTILABEL:
        return RNG.integers(0, 2, (samples, outputs)).astype(np.uint8)
    return RNG.standard_normal((samples, outputs))


def test_every_loss_is_tested():
    assert {type(loss) for loss in EACH} == set(LOSSES.values())


@pytest.mark.parametrize("loss", EACH, ids=str)
def test_a_gradient_agrees_with_finite_differences(loss):
    outputs, labels = 2 * RNG.standard_normal((9, 5)), targets(loss.targets)
    losses, gradient = loss.loss_and_gradient(outputs, labels)
    np.testing.assert_array_equal(losses, loss.loss(outputs, labels))
    np.testing.assert_array_equal(gradient, loss.gradient(outputs, labels))
    assert losses.shape == (9,) and gradient.shape == (9, 5) and gradient.flags.c_contiguous
    for row, column in np.ndindex(outputs.shape):
        step = np.zeros_like(outputs)
        step[row, column] = 1e-6
        numeric = (loss.loss(outputs + step, labels).sum() - loss.loss(outputs - step, labels).sum()) / 2e-6
        assert gradient[row, column] == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("loss", EACH, ids=str)
def test_float32_outputs_give_float32_gradients_close_to_those_of_float64(loss):
    outputs, labels = RNG.standard_normal((9, 5)).astype(np.float32), targets(loss.targets)
    labels = labels.astype(np.float32) if labels.dtype == np.float64 else labels
    losses, gradient = loss.loss_and_gradient(outputs, labels)
    exact, exact_gradient = loss.loss_and_gradient(outputs.astype(np.float64), labels)
    assert losses.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(losses, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-5, atol=1e-6)


def test_weights_of_one_change_nothing_but_rounding():
    outputs, labels = RNG.standard_normal((9, 5)), targets(CLASSES)
    plain, weighted = (CrossEntropy(0.1, weights).loss_and_gradient(outputs, labels) for weights in ((), (1.0,) * 5))
    np.testing.assert_allclose(weighted[0], plain[0], rtol=1e-12)
    np.testing.assert_allclose(weighted[1], plain[1], rtol=1e-12, atol=1e-14)


def test_the_weight_of_a_class_multiplies_the_loss_of_its_samples():
    outputs, labels = RNG.standard_normal((9, 5)), targets(CLASSES)
    plain, weighted = (CrossEntropy(0.0, weights).loss(outputs, labels) for weights in ((), WEIGHTS))
    np.testing.assert_allclose(weighted, np.array(WEIGHTS)[labels] * plain, rtol=1e-12)


def test_sigmoid_cross_entropy_is_the_sum_over_the_labels():
    outputs, labels = RNG.standard_normal((9, 5)), targets(MULTILABEL)
    p = 1 / (1 + np.exp(-outputs))
    expected = -np.where(labels, np.log(p), np.log(1 - p)).sum(axis=1)
    loss = SigmoidCrossEntropy()
    np.testing.assert_allclose(loss.loss(outputs, labels), expected, rtol=1e-12)
    np.testing.assert_allclose(loss.probabilities(outputs), p, rtol=1e-12)
    np.testing.assert_array_equal(loss.correct(outputs, labels), ((p > 0.5) == labels).all(axis=1))


def test_errors_of_values_by_hand():
    outputs, values = np.array([[1.0, 5.0], [0.0, -3.0]]), np.array([[0.5, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(SquaredError().loss(outputs, values), [0.25 + 9, 9])
    np.testing.assert_allclose(Huber(1.0).loss(outputs, values), [0.125 + 2.5, 2.5])


@pytest.mark.parametrize("kind", [SigmoidCrossEntropy, SquaredError, Huber])
def test_large_outputs_stay_finite(kind):
    outputs = np.array([[1e18, -1e18]], np.float32)
    with np.errstate(under="ignore"):
        losses, gradient = kind().loss_and_gradient(outputs, np.array([[0, 1]], np.uint8))
    assert np.isfinite(losses).all() and np.isfinite(gradient).all()


def test_the_place_of_a_class_counts_higher_outputs_and_equal_ones_before_it():
    outputs = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0, 5.0, 5.0]])
    labels = np.array([0, 0, 2, 2], np.uint8)
    assert CrossEntropy().places(outputs, labels).tolist() == [0, 0, 2, 1]
    assert CrossEntropy().correct(outputs, labels).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"loss": "huber", "monitor": "accuracy"},
            "--monitor: no 'accuracy'; the loss huber has loss, mae, r2; or auto",
        ),
        ({"monitor": "beauty"}, "--monitor: no 'beauty'; the loss cross-entropy has accuracy, loss, top5,"),
        ({"class_weights": "1,2"}, "--class-weights: expected a list of numbers, not '1,2'"),
        ({"class_weights": [1, "2"]}, "--class-weights: expected float, not '2'"),
        ({"class_weights": [1, -2]}, "--class-weights: must be at least 0, not -2"),
        ({"class_weights": [0, 0.0]}, "--class-weights: all are 0, so nothing would be learned; give a weight above 0"),
        ({"loss": "huber", "delta": 0.0}, "--delta: must be a number above 0, not 0.0"),
        (
            {"loss": "huber", "label_smoothing": 0.1},
            "--label-smoothing: an option of cross-entropy, not of this run: the optimizer adam has",
        ),
        ({"schedule": "plateau", "validation": 0}, "--schedule plateau: needs --validation samples to judge by"),
    ],
)
def test_mistakes_in_a_recipe(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert str(caught.value).startswith(message)


def test_weights_are_the_same_after_a_file():
    config = from_dict({"class_weights": [1, 2.5]})
    assert from_dict(config.as_dict(), whole=True) == config
    assert config.make_loss().class_weights == [1, 2.5] and Config().as_dict()["class_weights"] == []


def test_files_of_older_versions_lack_the_newer_options():
    values = Config().as_dict()
    del values["class_weights"], values["plateau_patience"]
    assert from_dict(values, whole=True) == Config()
    del values["lr"]
    with pytest.raises(ConfigError, match="lr is missing"):
        from_dict(values, whole=True)


def test_a_loss_and_data_of_another_kind_are_refused():
    with pytest.raises(ConfigError) as caught:
        Huber().check_data(CLASSES, 10, "mnist")
    assert str(caught.value) == (
        "--loss: this loss is for values, but the data set mnist has one class per sample; give another data set, or "
        "train with --loss cross-entropy"
    )
    with pytest.raises(ConfigError, match="expected 3 weights, one for each class of rgb, not 5"):
        CrossEntropy(0.0, WEIGHTS).check_data(CLASSES, 3, "rgb")


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
