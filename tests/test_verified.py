"""The record of verified shards: what is hashed again, and what is not."""

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import command, training
from conftest import train
from sources import edit_manifest
from threads import run_ranks

from dpcnn.data import verified
from dpcnn.data.dataset import load
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import read_manifest
from dpcnn.data.verified import RECORD
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm

SHARDS = ["train-00.h5", "train-01.h5", "train-02.h5"]


@pytest.fixture
def folder(small, tmp_path, monkeypatch):
    """A copy of the small data set, whose files count as settled."""
    monkeypatch.setattr(verified, "SETTLED", -(2**62))
    shutil.copytree(small, tmp_path / "set", ignore=shutil.ignore_patterns(RECORD))
    return tmp_path / "set"


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of the files that are hashed."""
    names, original = [], ShardFile.sha256

    def recorded(file):
        names.append(file.path.name)
        return original(file)

    monkeypatch.setattr(ShardFile, "sha256", recorded)
    return names


def start(folder: Path, verify: bool = False) -> None:
    load(folder, "train", SerialComm(), verify)


def test_a_shard_is_hashed_at_the_first_start_only(folder, hashed):
    start(folder)
    assert hashed == SHARDS
    load(folder, "test", SerialComm())
    assert hashed == [*SHARDS, "test-00.h5"]
    for split in ("train", "test"):
        load(folder, split, SerialComm())
    assert hashed == [*SHARDS, "test-00.h5"]
    start(folder, verify=True)
    assert hashed == [*SHARDS, "test-00.h5", *SHARDS]


@pytest.mark.parametrize("nodes", [[2], [1, 1], [3, 2]])
def test_all_ranks_use_one_record(nodes, folder, hashed):
    run_ranks(nodes, lambda comm: load(folder, "train", comm))
    assert sorted(set(hashed)) == SHARDS and len(hashed) == len(SHARDS) * len(nodes)
    hashed.clear()
    run_ranks(nodes, lambda comm: load(folder, "train", comm))
    assert hashed == []


def flip(path: Path) -> None:
    """Change a byte, once the clock of the file system has moved on."""
    clock, before = path.with_suffix(".clock"), path.stat().st_ctime_ns
    clock.touch()
    while clock.stat().st_ctime_ns <= before:
        clock.touch()
    with open(path, "r+b") as file:
        file.seek(4000)
        byte = file.read(1)[0]
        file.seek(4000)
        file.write(bytes([byte ^ 16]))


def changed(path: Path) -> None:
    flip(path)


def changed_with_its_time_set_back(path: Path) -> None:
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_changed_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    changed_with_its_time_set_back(copy)
    copy.replace(path)


@pytest.mark.parametrize("change", [changed, changed_with_its_time_set_back, replaced_by_a_changed_copy])
def test_no_changed_file_passes(change, folder):
    start(folder)
    change(folder / "train-01.h5")
    with pytest.raises(DataError, match="train-01.h5: damaged or replaced"):
        start(folder)


@pytest.mark.parametrize("field", ["size", "mtime_ns", "ctime_ns", "inode", "sha256"])
def test_each_field_of_an_entry_must_hold(field, folder, hashed):
    start(folder)
    hashed.clear()
    record = json.loads((folder / RECORD).read_text())
    entry = record["files"]["train-01.h5"]
    entry[field] = "0" * 64 if field == "sha256" else entry[field] + 1
    (folder / RECORD).write_text(json.dumps(record))
    start(folder)
    assert hashed == ["train-01.h5"]


def test_an_entry_for_another_manifest_is_not_used(folder):
    start(folder)
    edit_manifest(folder, lambda m: m["splits"]["train"][1].update(sha256="0" * 64))
    with pytest.raises(DataError, match="train-01.h5: damaged or replaced"):
        start(folder)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": 2, "files": {}}', '{"format": 1, "files": {"train-01.h5": 5}}', "[" * 100_000,
     '{"format": 1, "files": {"train-01.h5": {"size": 1e400}}}', " " * (5 << 20)],
)  # fmt: skip
def test_a_record_that_is_none_is_ignored_and_written_again(content, folder, hashed):
    start(folder)
    hashed.clear()
    (folder / RECORD).write_text(content)
    start(folder)
    start(folder)
    assert hashed == SHARDS


@pytest.mark.parametrize("obstacle", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path.parent / "train-00.h5")])
def test_a_record_that_can_t_be_written_is_left_alone(obstacle, folder, hashed):
    obstacle(folder / RECORD)
    before = {path.name: path.lstat() for path in folder.iterdir()}
    start(folder)
    start(folder)
    assert hashed == SHARDS * 2
    assert {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()} == {
        name: status.st_mtime_ns for name, status in before.items()
    }


def test_a_file_that_has_just_changed_is_not_recorded(folder, hashed, monkeypatch):
    monkeypatch.setattr(verified, "SETTLED", 2**62)
    start(folder)
    assert not (folder / RECORD).exists()
    monkeypatch.setattr(verified, "SETTLED", -(2**62))
    start(folder)
    monkeypatch.setattr(verified, "SETTLED", 2**62)
    start(folder)
    assert hashed == SHARDS * 2


def test_mpi_ranks_use_the_record_too(npz, quick, tmp_path):
    """A record that vouches for a damaged shard shows whether it is used."""
    folder = tmp_path / "set"
    assert command("data", "prepare", npz, "--out", folder, "--shards", "1", "--contiguous").status == 0
    flip(folder / "train-00.h5")
    (sha256,) = [shard.sha256 for shard in read_manifest(folder).splits["train"]]
    status = (folder / "train-00.h5").stat()
    times = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    entry = {"size": status.st_size, **times, "inode": status.st_ino, "sha256": sha256}
    (folder / RECORD).write_text(json.dumps({"format": 1, "files": {"train-00.h5": entry}}))
    flags = [*quick, "--data", folder, "--model", "mlp", "--max-steps", "2"]
    assert train(2, *flags, "--out", tmp_path / "run").status == 0
    result = train(2, *flags, "--out", tmp_path / "verified", "--verify")
    assert result.status == 2 and "train-00.h5: damaged or replaced" in result.errors[0]


def test_commands_verify_on_request(folder, quick, tmp_path, hashed):
    flags = [*quick, "--data", folder, "--model", "mlp", "--epochs", "1", "--out", tmp_path / "run"]
    assert training(*flags, ranks=2).status == 0
    hashed.clear()
    assert training(*flags[:-1], tmp_path / "again", "--verify", ranks=2).status == 0
    assert sorted(hashed) == SHARDS
    for more, expected in ([], ["test-00.h5"]), ([], []), (["--verify"], ["test-00.h5"]):
        hashed.clear()
        assert command("evaluate", tmp_path / "run", *more, ranks=2).status == 0
        assert hashed == expected
    hashed.clear()
    assert command("data", "info", folder, ranks=2).status == 0
    assert sorted(hashed) == ["test-00.h5", *SHARDS]
