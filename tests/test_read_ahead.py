"""Samples in files: what is requested of the system, and when."""

import itertools

import numpy as np
import pytest
from commands import command, training
from metrics import timeless

from dpcnn.base import files
from dpcnn.config import Config
from dpcnn.data.dataset import Samples, load
from dpcnn.parallel.comm import SerialComm
from dpcnn.training.plan import Plan


@pytest.fixture(scope="module")
def contiguous(npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contiguous") / "set"
    result = command("data", "prepare", npz, "--out", folder, "--shards", "3", "--contiguous")
    assert result.status == 0, result.err
    return folder


def log(monkeypatch) -> list[tuple[str, int, int]]:
    """Every read of a file from here on, and every request to read ahead: the kind, the offset and the bytes."""
    calls: list[tuple[str, int, int]] = []
    advise, read = files.os.posix_fadvise, files.os.preadv

    def advised(descriptor, offset, size, advice):
        kind = {files.os.POSIX_FADV_WILLNEED: "ahead", files.os.POSIX_FADV_RANDOM: "random"}[advice]
        calls.append((kind, offset, size))
        advise(descriptor, offset, size, advice)

    def recorded(descriptor, buffers, offset):
        calls.append(("read", offset, sum(buffer.nbytes for buffer in buffers)))
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(files.os, "posix_fadvise", advised)
    monkeypatch.setattr(files.os, "preadv", recorded)
    return calls


def test_all_images_of_a_file_are_requested_before_the_first_is_read(contiguous, monkeypatch):
    samples = load(contiguous, "train", SerialComm())
    calls = log(monkeypatch)
    samples.take(np.array([9, 10, 11, 3, 700 - 1, 50]))  # the sixth is in the last of three files
    sizes = {kind: [size for each, _, size in calls if each == kind] for kind in ("ahead", "read")}
    assert sizes["ahead"] == sizes["read"] == [3 * 144, 144, 144, 144]
    assert [kind for kind, _ in itertools.groupby(calls, lambda call: call[0])] == ["ahead", "read"] * 2
    calls.clear()
    samples.read_ahead(np.array([9, 10, 11, 3, 700 - 1, 50]))
    assert [(kind, size) for kind, _, size in calls] == [("ahead", size) for size in sizes["ahead"]]


def test_shards_that_are_read_by_sample_are_declared_random(contiguous, small, monkeypatch):
    calls = log(monkeypatch)
    load(contiguous, "train", SerialComm())
    assert [call for call in calls if call[0] == "random"] == [("random", 0, 0)] * 3
    calls.clear()
    samples = load(small, "train", SerialComm())
    samples.read_ahead(np.arange(50))
    assert not [call for call in calls if call[0] != "read"]


def test_what_can_t_be_read_ahead_is_read_later(contiguous, monkeypatch):
    def refuse(*_):
        raise OSError

    expected = load(contiguous, "train", SerialComm()).take(np.arange(50))
    monkeypatch.setattr(files.os, "posix_fadvise", refuse)
    samples = load(contiguous, "train", SerialComm())
    samples.read_ahead(np.arange(50))
    for one, other in zip(samples.take(np.arange(50)), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_images_in_files_are_not_mapped(contiguous):
    """Mapped pages would count as memory of the process."""
    samples = load(contiguous, "train", SerialComm())
    samples.take(np.arange(700))
    with open("/proc/self/maps") as maps:
        assert str(contiguous) not in maps.read()


@pytest.mark.parametrize("max_steps", [0, 5])
def test_the_next_batch_is_that_of_the_next_step_also_in_the_next_epoch(max_steps, small):
    samples = load(small, "train", SerialComm())
    config = Config(validation=100, batch=250, epochs=2, max_steps=max_steps)
    plan, other = Plan(config, samples), Plan(config, samples)
    steps = [(epoch, 3 * epoch + step) for epoch in range(2) for step in range(3)][: max_steps or None]
    for (epoch, step), (next_epoch, next_step) in itertools.pairwise(steps):
        np.testing.assert_array_equal(plan.next_batch(epoch, step), other.batch(next_epoch, next_step))
    assert plan.next_batch(*steps[-1]).size == 0


def test_a_microbatch_is_requested_one_step_ahead(contiguous, quick, tmp_path, monkeypatch):
    calls: dict[str, list[list[int]]] = {"read_ahead": [], "take": []}

    def recorded(name):
        original = getattr(Samples, name)

        def record(samples, indices):
            calls[name].append(indices.tolist())
            return original(samples, indices)

        return record

    for name in calls:
        monkeypatch.setattr(Samples, name, recorded(name))
    flags = [*quick, "--data", contiguous, "--model", "mlp", "--batch", "48", "--max-steps", "4"]
    assert training(*flags, "--out", tmp_path / "run").status == 0
    assert calls["read_ahead"] == [*calls["take"][3:12], [], [], []]


def test_the_bits_are_those_of_a_set_in_memory_also_when_a_rank_dies(contiguous, quick, tmp_path):
    flags = [*quick, "--model", "mlp", "--no-curves", "--stall-timeout", "0"]
    runs = {"memory": ([], None), "files": (["--data", contiguous], None), "death": (["--data", contiguous], {1: 60})}
    found = []
    for name, (more, dying) in runs.items():
        result = command("train", *flags, *more, "--out", tmp_path / name, ranks=[2, 1], dying=dying)
        assert result.status == 0, result.err
        found.append([event for event in timeless(tmp_path / name) if event["event"] != "death"])
    assert "rank 1 " in result.out and " died after step " in result.out
    assert found[0] == found[1] == found[2]
