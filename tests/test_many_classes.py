"""Data sets with more classes than a byte can number."""

import csv
import io
import json

import numpy as np
import pytest
from commands import command, training
from sources import synthetic

from dpcnn.base.rng import HOLDOUT, philox
from dpcnn.data.classes import MOST_CLASSES, class_type, number_labels
from dpcnn.data.dataset import load
from dpcnn.data.holdout import VALIDATION, stratified
from dpcnn.data.shards import read_manifest
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

CLASSES = 1200
NAMES = tuple(f"class {n}" for n in range(CLASSES))


def arrays(classes: int) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, the highest label of which is ``classes`` - 1."""
    (x_train, y_train), (x_test, y_test) = synthetic(200, 1), synthetic(60, 2)
    lift = classes - 10
    return {"x_train": x_train, "y_train": y_train.astype(int) + lift * (y_train > 4), "x_test": x_test} | {
        "y_test": y_test.astype(int) + lift * (y_test > 4)
    }


@pytest.mark.parametrize(("classes", "dtype"), [(256, "u1"), (257, "u2"), (MOST_CLASSES, "u2")])
@pytest.mark.parametrize("flags", [[], ["--contiguous"]])
def test_labels_come_back_with_the_least_type(classes, dtype, flags, tmp_path):
    assert class_type(classes) == dtype
    given = arrays(classes)
    np.savez(tmp_path / "x.npz", **given)
    found = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks) / "set"
        assert command("data", "prepare", tmp_path / "x.npz", "--out", out, *flags, ranks=ranks).status == 0
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    for split in ("train", "test"):
        labels = load(out, split, SerialComm()).labels
        assert labels.dtype == dtype
        np.testing.assert_array_equal(labels, given[f"y_{split}"])


def test_text_and_one_hot_labels_of_many_classes(tmp_path):
    numbers = np.array([0, 299, 7, 256])
    labels, names = number_labels(tmp_path, {"train": np.eye(300, dtype=bool)[numbers]}, None)
    np.testing.assert_array_equal(labels["train"], numbers)
    texts = np.array([f"name {n:03}" for n in range(300)])
    labels, names = number_labels(tmp_path, {"train": texts, "test": texts[numbers]}, None)
    assert names == tuple(texts.tolist()) and labels["train"].dtype == np.uint16
    np.testing.assert_array_equal(labels["test"], numbers)


def test_a_label_beyond_the_classes_is_found(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(300))
    assert command(
        "data", "prepare", tmp_path / "x.npz", "--out", tmp_path / "set", "--names", names_file(tmp_path, 300)
    )
    manifest = (tmp_path / "set" / "manifest.json").read_text()
    fewer = json.loads(manifest) | {"classes": 299, "class_names": [str(n) for n in range(299)]}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(fewer))
    with pytest.raises(DataError, match="has label 299, but there are 299 classes"):
        load(tmp_path / "set", "train", SerialComm())


def names_file(folder, count: int):
    """A file with as many class names."""
    (folder / "names.txt").write_text("".join(f"class {n}\n" for n in range(count)))
    return folder / "names.txt"


def test_as_many_samples_of_each_class_as_one_class_after_the_other_gives():
    labels = np.random.default_rng(0).integers(0, 300, 2000).astype(np.uint16) * 200
    drawn = stratified(labels, 400, seed=5)
    assert len(set(drawn.tolist())) == 400
    keys = philox(5, HOLDOUT, VALIDATION).random_raw(len(labels))
    found = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share = np.isin(drawn, members).sum()
        assert abs(share - 0.2 * len(members)) < 1
        found += members[np.argsort(keys[members])[:share]].tolist()
    assert drawn.tolist() == found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A short run on 1,200 classes."""
    folder = tmp_path_factory.mktemp("many")
    np.savez(folder / "x.npz", **arrays(CLASSES))
    words = ["--out", folder / "set", "--names", names_file(folder, CLASSES)]
    assert command("data", "prepare", folder / "x.npz", *words).status == 0
    words = ["--validation", "50", "--batch", "50", "--epochs", "1", "--model", "small-cnn", "--warmup", "0"]
    hashes = set()
    for ranks in (1, 3):
        result = training("--data", folder / "set", *words, "--out", folder / f"run{ranks}", ranks=ranks)
        assert result.status == 0, result.err
        hashes.add(read(folder / f"run{ranks}" / "checkpoints" / "last.h5").weights_sha256)
    assert len(hashes) == 1
    return folder


def test_a_training_knows_all_names(many):
    checkpoint = read(many / "run1" / "checkpoints" / "last.h5")
    assert checkpoint.class_names == read_manifest(many / "set").class_names == NAMES
    assert checkpoint.network().classes == CLASSES


def test_an_evaluation_of_many_classes_has_scores_and_no_confusion(many, tmp_path):
    result = command("evaluate", many / "run1", "--json", ranks=2)
    found = json.loads(result.out)
    assert "confusion" not in found and [each["name"] for each in found["classes"]] == list(NAMES)
    assert sum(each["samples"] for each in found["classes"]) == 60
    result = command("evaluate", many / "run1", "--plots", tmp_path)
    assert result.status == 2 and "or of more than 1,000 classes; drop the flag" in result.errors[0]


def test_predictions_name_the_likeliest_of_many_classes(many, tmp_path):
    np.savez(tmp_path / "x.npz", x=synthetic(2, 4)[0])
    lines = command("predict", many / "run1", tmp_path / "x.npz", "--top", "7").out.splitlines()
    assert [line.count("class ") for line in lines] == [7, 7]
    rows = list(csv.reader(io.StringIO(command("predict", many / "run1", tmp_path / "x.npz", "--csv").out)))
    assert rows[0][3:] == [f"p({name})" for name in NAMES] and rows[1][2] in NAMES


def test_many_names_go_out_and_come_back(many, tmp_path):
    pytest.importorskip("safetensors")
    words = [many / "run1", "--format", "safetensors", "--out", tmp_path / "net.safetensors"]
    assert command("export", *words).status == 0
    assert command("import", tmp_path / "net.safetensors", "--out", tmp_path / "net.h5").status == 0
    assert read(tmp_path / "net.h5").class_names == NAMES


def test_the_report_of_many_classes_is_bounded(many, tmp_path):
    pytest.importorskip("matplotlib")
    result = command("report", many / "run1", "--out", tmp_path / "page.html")
    assert result.status == 0 and not result.err, result.err
    assert (
        "<td>class 1199</td>" in (tmp_path / "page.html").read_text()
        and (tmp_path / "page.html").stat().st_size < 4_000_000
    )
