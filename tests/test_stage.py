"""Data sets staged once a node: whole or absent, used again, and no room for them."""

import json
import os
import shutil

import numpy as np
import pytest
from commands import command, training
from metrics import timeless

from dpcnn.data.dataset import load
from dpcnn.data.shards import SPLITS
from dpcnn.data.stage import stage
from dpcnn.data.writing import content_sha256
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm


def test_a_staged_set_is_the_same_and_is_used_again(small, tmp_path):
    copy = stage(small, tmp_path / "scratch", SerialComm())
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == [copy.name]
    ours, theirs = (load(folder, "train", SerialComm()) for folder in (copy, small))
    assert ours.manifest.checksum == theirs.manifest.checksum and len(ours) == len(theirs)
    before = (copy / "manifest.json").stat().st_mtime_ns
    assert stage(small, tmp_path / "scratch", SerialComm()) == copy
    assert (copy / "manifest.json").stat().st_mtime_ns == before


def test_a_compressed_set_is_unpacked_and_a_contiguous_one_is_copied(npz, tmp_path):
    for flags in ([], ["--contiguous"]):
        source = tmp_path / f"set{len(flags)}"
        assert command("data", "prepare", npz, "--out", source, "--shards", "3", *flags).status == 0
        copy = stage(source, tmp_path / f"scratch{len(flags)}", SerialComm())
        for split in SPLITS:
            ours, theirs = (load(folder, split, SerialComm()) for folder in (copy, source))
            assert not ours.manifest.compressed and ours.manifest.checksum == theirs.manifest.checksum
            order = np.random.default_rng(0).permutation(len(theirs))
            for one, other in zip(ours.take(order), theirs.take(order), strict=True):
                np.testing.assert_array_equal(one, other)
            assert ours.manifest.content[split] == content_sha256(copy, ours.manifest, split)
    for name in ("manifest.json", "train-02.h5"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()


def test_a_damaged_set_is_not_staged(small, tmp_path):
    shutil.copytree(small, tmp_path / "set")
    content = bytearray((tmp_path / "set" / "train-01.h5").read_bytes())
    content[4000] ^= 1
    (tmp_path / "set" / "train-01.h5").write_bytes(content)
    with pytest.raises(DataError, match="train-01.h5: damaged or replaced"):
        stage(tmp_path / "set", tmp_path / "scratch", SerialComm())
    assert not list((tmp_path / "scratch").iterdir())


def test_an_unpacked_copy_of_another_user_is_not_taken(small, tmp_path, monkeypatch):
    copy = stage(small, tmp_path / "scratch", SerialComm())
    monkeypatch.setattr(os, "geteuid", lambda: copy.stat().st_uid + 1)
    with pytest.raises(DataError, match="is not your copy of .*; remove it, or give another folder"):
        stage(small, tmp_path / "scratch", SerialComm())


def test_a_set_larger_than_memory_is_refused_in_memory_and_trains_staged(quick, tmp_path, monkeypatch):
    monkeypatch.setattr("dpcnn.data.dataset.memory_left", lambda: 100_000)
    flags = [*quick, "--model", "mlp", "--epochs", "1", "--out", tmp_path / "run"]
    result = training(*flags, ranks=2)
    assert result.status == 2 and len(result.errors) == 1
    assert "(train): needs 0 MB of memory, but 0 MB are left here; train with --stage DIR" in result.errors[0]
    assert training(*flags, "--stage", tmp_path / "scratch", ranks=2).status == 0


def test_training_on_staged_data(quick, tmp_path):
    flags = [*quick, "--model", "mlp", "--epochs", "1"]
    for name, more in (("plain", []), ("staged", ["--stage", tmp_path / "scratch"])):
        result = training(*flags, *more, "--out", tmp_path / name, ranks=[2, 1])
        assert result.status == 0, result.err
    assert timeless(tmp_path / "plain") == timeless(tmp_path / "staged")
    (copy,) = (tmp_path / "scratch").iterdir()
    assert json.loads((copy / "manifest.json").read_text())["name"] == "small"


def test_nothing_is_staged_for_a_run_whose_folder_is_taken(quick, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("")
    result = training(*quick, "--stage", tmp_path / "scratch", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and "belongs to another run" in result.errors[0]
    assert not (tmp_path / "scratch").exists()


def test_a_place_that_can_t_be_written(quick, tmp_path):
    result = training(*quick, "--stage", "/proc/scratch", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and len(result.errors) == 1 and not (tmp_path / "run").exists()
    assert "--stage: " in result.errors[0] and "can't be copied to /proc/scratch/dpcnn-" in result.errors[0]
