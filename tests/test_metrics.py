"""The metrics against plain definitions, like those of scikit-learn."""

import numpy as np
import pytest

from dpcnn.nn.losses import CLASSES, LOSSES, MULTILABEL, VALUES, CrossEntropy, Huber, SigmoidCrossEntropy
from dpcnn.nn.metrics import METRICS, Answers
from dpcnn.runs.events import bounds, metric_of

RNG = np.random.default_rng(5)


def answers(loss, outputs, labels) -> Answers:
    return Answers(
        labels,
        loss.predicted(outputs).astype(labels.dtype),
        loss.correct(outputs, labels),
        loss.loss(outputs, labels),
        loss.places(outputs, labels),
    )


def value(name: str, of: Answers) -> float:
    return METRICS[name].of(of)


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def scores(truth, predicted) -> tuple[float, float, float]:
    """Precision, recall and F1 of one class, of truth values: one sample after the other."""
    both = sum(bool(t and p) for t, p in zip(truth, predicted, strict=True))
    precision, recall = ratio(both, int(sum(predicted))), ratio(both, int(sum(truth)))
    return precision, recall, ratio(2 * precision * recall, precision + recall)


@pytest.mark.parametrize("classes", [3, 8])
def test_metrics_of_classes(classes):
    outputs, labels = RNG.standard_normal((60, classes)), RNG.integers(0, classes, 60).astype(np.uint8)
    outputs[np.arange(60), labels] += 1
    found = answers(CrossEntropy(), outputs, labels)
    predicted = [max(range(classes), key=lambda k: row[k]) for row in outputs]
    assert value("accuracy", found) == sum(p == t for p, t in zip(predicted, labels, strict=True)) / 60
    best = [sorted(range(classes), key=lambda k: -row[k])[:5] for row in outputs]
    assert value("top5", found) == sum(t in five for t, five in zip(labels, best, strict=True)) / 60
    of_classes = [scores(labels == k, np.array(predicted) == k) for k in range(classes)]
    for name, column in zip(("precision", "recall", "f1"), np.transpose(of_classes), strict=True):
        assert value(name, found) == pytest.approx(np.mean(column), rel=1e-12)
    assert value("loss", found) == pytest.approx(np.mean(found.losses), rel=1e-12)


def test_a_class_that_never_occurs_does_not_count_but_one_that_is_only_predicted_does():
    labels = np.array([0, 0, 3], np.uint8)
    outputs = np.array([[9, 0, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9.0]])  # predicted: 0, 2, 3
    found = answers(CrossEntropy(), outputs, labels)
    assert value("precision", found) == pytest.approx((1 + 0 + 1) / 3)
    assert value("recall", found) == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert value("f1", found) == pytest.approx((2 / 3 + 0 + 1) / 3)


def test_metrics_of_labels():
    outputs, labels = RNG.standard_normal((50, 4)), RNG.integers(0, 2, (50, 4)).astype(np.uint8)
    labels[:, 3], outputs[:, 3] = 0, -1  # a label that never occurs counts as 0, as in scikit-learn
    found = answers(SigmoidCrossEntropy(), outputs, labels)
    predicted = outputs > 0
    assert value("accuracy", found) == sum((p == t).all() for p, t in zip(predicted, labels, strict=True)) / 50
    of_labels = [scores(labels[:, k], predicted[:, k]) for k in range(4)]
    for name, column in zip(("precision", "recall", "f1"), np.transpose(of_labels), strict=True):
        assert value(name, found) == pytest.approx(np.mean(column), rel=1e-12)


def test_metrics_of_values():
    values = RNG.standard_normal((40, 3)).astype(np.float32)
    outputs = values + RNG.standard_normal((40, 3)).astype(np.float32)
    found = answers(Huber(), outputs, values)
    errors = outputs.astype(float) - values
    assert value("mae", found) == pytest.approx(np.mean(np.abs(errors)), rel=1e-12)
    rest, whole = (errors**2).sum(axis=0), ((values - values.astype(float).mean(axis=0)) ** 2).sum(axis=0)
    assert value("r2", found) == pytest.approx(np.mean(1 - rest / whole), rel=1e-12)


@pytest.mark.parametrize(("error", "expected"), [(0.0, 1.0), (0.5, 0.0)])
def test_the_r2_of_a_constant_value(error, expected):
    values = np.full((5, 1), 2.5, np.float32)
    assert value("r2", answers(Huber(), values + np.float32(error), values)) == expected


def test_the_order_of_the_samples_changes_no_bit():
    for kind in (CLASSES, MULTILABEL, VALUES):
        loss = next(loss() for loss in LOSSES.values() if loss.targets == kind)
        outputs = RNG.standard_normal((700, 6)).astype(np.float32)
        labels = RNG.standard_normal((700, 6)).astype(np.float32)
        labels = labels if kind == VALUES else (labels > 0).astype(np.uint8)
        labels = labels if kind != CLASSES else labels.argmax(axis=1).astype(np.uint8)
        order = RNG.permutation(700)
        one, other = answers(loss, outputs, labels), answers(loss, outputs[order], labels[order])
        assert {name: value(name, one) for name in loss.metrics} == {name: value(name, other) for name in loss.metrics}


def test_every_loss_names_known_metrics_and_every_metric_has_bounds():
    assert {name for loss in LOSSES.values() for name in loss.metrics} == set(METRICS)
    assert (bounds("validation_f1"), bounds("test_r2")) == ((0, 1), (-1e300, 1))
    assert bounds("train_loss") == (-4e38, 4e38) and bounds("validation_mae") == (0, 1e300)


def test_the_key_of_a_line_names_its_metric(monkeypatch):
    monkeypatch.setitem(METRICS, "balanced_accuracy", METRICS["accuracy"])
    keys = ["loss", "train_accuracy", "validation_balanced_accuracy", "best_validation_f1", "learning_rate", "seconds"]
    assert list(map(metric_of, keys)) == ["loss", "accuracy", "balanced_accuracy", "f1", "", ""]
