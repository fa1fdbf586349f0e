"""The picture of a run, of runs beside each other, and of the shortest run there is."""

import json

import numpy as np
import pytest

from dpcnn.reporting.confusion import confused_pairs, draw_confusion, largest
from dpcnn.reporting.curves import draw_curves
from dpcnn.reporting.timelines import draw_timelines
from dpcnn.runs.events import read_events


def write_run(folder, epochs: int, steps: int):
    folder.mkdir()
    step = {"event": "step", "epoch": 1, "accuracy": 0.5, "learning_rate": 0.1}
    events = [step | {"step": s + 1, "loss": 2.0 / (s + 1)} for s in range(steps)]
    times = {"learning_rate": 0.1, "seconds": 1.0, "images_per_second": 10.0}
    for epoch in range(1, epochs + 1):
        losses = {"train_loss": 1 / epoch, "validation_loss": 1.1 / epoch}
        accuracies = {"train_accuracy": 1 - 0.1 / epoch, "validation_accuracy": 1 - 0.2 / epoch}
        events.append({"event": "epoch", "epoch": epoch, "step": 10 * epoch, **losses, **accuracies, **times})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


@pytest.mark.parametrize(("epochs", "steps"), [(1, 0), (1, 3), (5, 40)])
def test_a_picture_of_any_run(epochs, steps, tmp_path):
    run = write_run(tmp_path / "run", epochs, steps)
    line = draw_curves([run], tmp_path / "curves")
    assert line == f"curves drawn: {tmp_path / 'curves.png'} and {tmp_path / 'curves.svg'}"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<path" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("stem", "files"),
    [("a.v2", ["a.v2.png", "a.v2.svg"]), ("a.png", ["a.png"]), ("a.svg", ["a.svg"])],
)
def test_the_name_decides_on_the_files(stem, files, tmp_path):
    """A name with another ending lost it."""
    (tmp_path / "drawn").mkdir()
    line = draw_curves([write_run(tmp_path / "run", 3, 30)], tmp_path / "drawn" / stem)
    assert line == "curves drawn: " + " and ".join(str(tmp_path / "drawn" / name) for name in files)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == files
    starts = {".png": b"\x89PNG", ".svg": b"<?xml"}
    assert all((tmp_path / "drawn" / name).read_bytes().startswith(starts[name[-4:]]) for name in files)


def test_runs_beside_each_other(tmp_path):
    runs = [write_run(tmp_path / name, 3, 30) for name in ("one", "two")]
    draw_curves(runs, tmp_path / "both")
    draw_curves(runs[:1], tmp_path / "single")
    assert (tmp_path / "both.svg").stat().st_size > (tmp_path / "single.svg").stat().st_size


def test_the_most_confused_classes_come_first():
    confusion = np.array([[5, 1, 0], [3, 90, 7], [0, 1, 0]])
    assert confused_pairs(confusion, ("cat", "dog", "owl")) == [
        ("dog", "owl", "7", "7.0%"),
        ("dog", "cat", "3", "3.0%"),
        ("cat", "dog", "1", "16.7%"),
        ("owl", "dog", "1", "100.0%"),
    ]
    assert confused_pairs(np.diag([4, 0, 2]), ("cat", "dog", "owl")) == []


def test_only_the_largest_of_1000_classes_pairs_are_listed():
    names = tuple(f"class {number}" for number in range(1000))
    confusion = np.arange(1_000_000).reshape(1000, 1000)
    pairs = confused_pairs(confusion, names)
    assert len(pairs) == 15 and pairs[0][:3] == ("class 999", "class 998", "999,998")


def test_a_single_mistake_among_1000_classes_is_drawn():
    counts = np.zeros((1000, 1000), np.int64)
    counts[999, 0] = 2
    cells = largest(counts)
    assert cells.shape == (250, 250) and cells[249, 0] == 2 and cells.sum() == 2
    assert largest(counts[:999, :999]).shape == (250, 250)
    small = np.arange(9).reshape(3, 3)
    np.testing.assert_array_equal(largest(small), small)


@pytest.mark.parametrize(("classes", "named"), [(10, True), (31, False), (1000, False)])
def test_a_confusion_matrix_has_names_only_if_they_are_few(classes, named, tmp_path):
    confusion = np.full((classes, classes), 3)
    draw_confusion(confusion, tuple(f"class {number}" for number in range(classes)), tmp_path / "confusion")
    text = (tmp_path / "confusion.svg").read_text()
    assert ("<!-- class 1 -->" in text) == named and ("<!-- 3 -->" in text) == named
    assert (f"the {classes:,} classes in their order" in text) != named


def test_a_picture_is_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        draw_confusion(np.ones((3, 3), np.int64), ("a", "b", "c"), tmp_path / name)
    for suffix in (".png", ".svg"):
        one, two = ((tmp_path / name).with_suffix(suffix).read_bytes() for name in ("one", "two"))
        assert one == two


def test_the_learning_rate_and_the_memory_are_drawn_if_they_are_recorded(tmp_path):
    run = write_run(tmp_path / "run", 3, 30)
    events = read_events(run / "metrics.jsonl")
    rate, memory = draw_timelines(events, tmp_path)
    assert rate == f"learning rate drawn: {tmp_path / 'rate.png'} and {tmp_path / 'rate.svg'}"
    assert memory == "no peak memory in MB drawn: the run has recorded none"  # as those of older versions
    events = [event | ({"peak_memory_mb": 80.5} if event["event"] == "epoch" else {}) for event in events]
    assert draw_timelines(events, tmp_path)[1].startswith("peak memory in MB drawn: ")
    assert "<path" in (tmp_path / "rate.svg").read_text() and "<path" in (tmp_path / "memory.svg").read_text()


@pytest.mark.parametrize("value", [0, 5e-324, 1e300])
def test_a_curve_of_any_value(value, tmp_path):
    events = [{"event": "epoch", "step": 10 * epoch, "learning_rate": value} for epoch in (1, 2)]
    assert draw_timelines(events, tmp_path)[0].startswith("learning rate drawn: ")
