"""Evaluation: counts by hand, pictures, and the same on any number of ranks."""

import json

import numpy as np
import pytest
from commands import command, training
from conftest import run

from dpcnn.nn.metrics import METRICS, Answers
from dpcnn.reporting.tables import class_table, sentence
from dpcnn.training.examination import scores

LABELS, PREDICTED = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 1])
NAMES = ("cat", "dog", "a fish", "3")
ANSWERS = Answers(LABELS, PREDICTED, LABELS == PREDICTED, np.array([0.1, 0.2, 3, 0.1, 2, 4]), np.zeros(6, int))


def of_classes(confusion: np.ndarray) -> list[dict]:
    """The scores of each class of a confusion matrix."""
    return scores(confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1), NAMES)


def test_counts_by_hand():
    confusion = ANSWERS.confusion(4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert (METRICS["accuracy"].of(ANSWERS), ANSWERS.count) == (0.5, 6)
    assert METRICS["loss"].of(ANSWERS) == pytest.approx(9.4 / 6)
    first, second, third, fourth = of_classes(confusion)
    assert first == {"class": 0, "name": "cat", "samples": 3, "precision": 2 / 3, "recall": 2 / 3}
    assert second == {"class": 1, "name": "dog", "samples": 2, "precision": 1 / 3, "recall": 1 / 2}
    assert third == {"class": 2, "name": "a fish", "samples": 1, "precision": None, "recall": 0}
    assert fourth == {"class": 3, "name": "3", "samples": 0, "precision": None, "recall": None}


def test_the_table_class_scores():
    confusion = ANSWERS.confusion(3)
    lines = class_table({"classes": of_classes(confusion), "confusion": confusion.tolist()}).splitlines()
    assert lines[0].split() == "class samples precision recall as cat as dog as a fish".split()
    assert lines[2].split() == ["cat", "3", "0.6667", "0.6667", "2", "1", "."]
    assert lines[4].split() == ["a", "fish", "1", "-", "0.0000", ".", "1", "."]


@pytest.fixture(scope="module")
def checkpoint(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    assert training(*quick, "--model", "mlp", "--max-steps", "6", "--validation", "0", "--out", folder).status == 0
    return folder / "checkpoints" / "last.h5"


def test_a_run_whose_data_set_has_a_relative_path_can_be_used_elsewhere(small, tmp_path):
    run, words = tmp_path / "run", ["--model", "mlp", "--max-steps", "2", "--warmup", "0"]
    assert training("--data", small.name, *words, "--out", run, cwd=small.parent).status == 0
    for name, *words in (
        ["evaluate", run],
        ["report", run],
        ["plot", run, "--filters"],
        ["train", "--init-from", run, "--max-steps", "1", "--out", tmp_path / "new", "--no-curves"],
        ["train", "--resume", "--max-steps", "3", "--out", run, "--no-curves"],
    ):
        result = command(name, *words, cwd=tmp_path, ranks=2)
        assert result.status == 2
        (error,) = result.errors
        assert f"its data set {small.name!r} is not here: there is no {small.name}/manifest.json, data/" in error
        assert error.startswith(f"dpcnn: error: {run}") and error.endswith("; give its folder: --data DIR")
        result = command(name, *words, "--data", small, cwd=tmp_path)
        assert result.status == 0, result.err


def test_the_top_five_of_a_few_classes_are_not_printed(small, tmp_path):
    for classes in (5, 6):
        results = {name: 0.5 for name in METRICS if name not in ("mae", "r2")} | {"classes": [{}] * classes}
        results |= {
            "checkpoint": "c",
            "step": 1,
            "split": "test",
            "data": "d",
            "samples": 2,
            "correct": 1,
            "seconds": 0,
        }
        assert ("top5 0.5000" in sentence(results)) == (classes > 5)
        assert "precision 0.5000, recall 0.5000, f1 0.5000" in sentence(results)


def test_all_ranks_tell_the_same(checkpoint):
    found = [json.loads(run(2, "-m", "dpcnn.evaluate", checkpoint, "--json").out)]
    found += [json.loads(command("evaluate", checkpoint, "--json", ranks=ranks).out) for ranks in (1, 2, 3)]
    for result in found:
        result.pop("seconds")
        assert result == found[0]
    assert np.sum(found[0]["confusion"]) == found[0]["samples"] == 150
    assert np.trace(found[0]["confusion"]) == found[0]["correct"]
    assert sum(row["samples"] for row in found[0]["classes"]) == 150


def test_table_and_pictures(checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    result = command("evaluate", checkpoint, "--classes", "--plots", tmp_path / "new" / "folder", ranks=3)
    assert result.status == 0, result.err
    assert sum(line.split()[:1] == [str(n)] for n, line in enumerate(result.out.splitlines()[5:15])) == 10
    for name in ("confusion", "mistakes"):
        path = tmp_path / "new" / "folder" / f"{name}.png"
        assert path.read_bytes().startswith(b"\x89PNG") and str(path) in result.out


def test_the_output_of_json_is_one_object(checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    result = command("evaluate", checkpoint, "--json", "--plots", tmp_path, ranks=2)
    assert json.loads(result.out)["samples"] == 150 and f"worst mistakes drawn: {tmp_path}" in result.err
    result = command("evaluate", checkpoint, "--json", "--classes", ranks=2)
    assert result.status == 2 and "--classes: has no effect with --json" in result.errors[0]


def test_a_run_without_validation_has_none_to_evaluate(checkpoint):
    result = command("evaluate", checkpoint, "--split", "validation", ranks=2)
    assert result.status == 2
    assert [line for line in result.errors if line.startswith("dpcnn: ")] == [
        f"dpcnn: error: {checkpoint}: its run held no samples back for validation; give --split test"
    ]
