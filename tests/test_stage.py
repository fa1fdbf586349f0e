"""Data sets staged once a node: whole or absent, used again, and no room for them."""

import json

from commands import training
from metrics import timeless

from dpcnn.data.dataset import load
from dpcnn.data.stage import stage
from dpcnn.parallel.comm import SerialComm


def test_a_staged_set_is_the_same_and_is_used_again(small, tmp_path):
    copy = stage(small, tmp_path / "scratch", SerialComm())
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [copy.name]
    ours, theirs = (load(folder, "train", SerialComm()) for folder in (copy, small))
    assert ours.manifest.checksum == theirs.manifest.checksum and len(ours) == len(theirs)
    before = (copy / "manifest.json").stat().st_mtime_ns
    assert stage(small, tmp_path / "scratch", SerialComm()) == copy
    assert (copy / "manifest.json").stat().st_mtime_ns == before


def test_training_on_staged_data(quick, tmp_path):
    flags = [*quick, "--model", "mlp", "--epochs", "1"]
    for name, more in (("plain", []), ("staged", ["--stage", tmp_path / "scratch"])):
        result = training(*flags, *more, "--out", tmp_path / name, ranks=[2, 1])
        assert result.status == 0, result.err
    assert timeless(tmp_path / "plain") == timeless(tmp_path / "staged")
    (copy,) = (tmp_path / "scratch").iterdir()
    assert json.loads((copy / "manifest.json").read_text())["name"] == "small"


def test_a_place_that_can_t_be_written(quick, tmp_path):
    result = training(*quick, "--stage", "/proc/scratch", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and len(result.errors) == 1 and not (tmp_path / "run").exists()
    assert "--stage: " in result.errors[0] and "can't be copied to /proc/scratch/dpcnn-" in result.errors[0]
