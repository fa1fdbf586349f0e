"""Event files for TensorBoard: read back as its format has it, each point once, resumed runs too."""

import importlib.util
import struct
import sys
from pathlib import Path

import pytest
from commands import training
from conftest import train
from metrics import events

needs_writer = pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="tensorboardX not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of the folder's one event file: records of a length, its checksum, an event, and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    content, place, found = path.read_bytes(), 0, {}
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
        place += 16 + length
    return found


@needs_writer
def test_every_point_once_in_a_resumed_run_too(quick, tmp_path):
    folder = tmp_path / "run"
    flags = ["--model", "mlp", "--tensorboard"]
    assert train(2, *quick, *flags, "--max-steps", "9", "--out", folder).status == 0  # a process closes its file
    assert train(0, "--resume", "--tensorboard", "--max-steps", "0", "--out", folder).status == 0
    found, told = scalars(folder / "tensorboard"), events(folder)
    epochs = [event for event in told if event["event"] == "epoch"]
    for tag, key in (
        ("loss/train", "train_loss"),
        ("accuracy/validation", "validation_accuracy"),
        ("images_per_second", "images_per_second"),
        ("peak_memory_mb", "peak_memory_mb"),
    ):
        assert [step for step, _ in found[tag]] == [7, 14]
        assert [value for _, value in found[tag]] == pytest.approx([event[key] for event in epochs], rel=1e-6)
    steps = [(event["step"], event["loss"]) for event in told if event["event"] == "step"]
    assert [step for step, _ in found["loss/step"]] == [step for step, _ in steps] == list(range(1, 15))
    assert [value for _, value in found["loss/step"]] == pytest.approx([loss for _, loss in steps], rel=1e-6)


def test_without_the_package_nothing_is_begun(quick, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    result = training(*quick, "--tensorboard", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and not (tmp_path / "run").exists()
    assert result.errors == [
        "dpcnn: error: --tensorboard: the package tensorboardX is not installed; "
        "get it: pip install 'dpcnn[tensorboard]'"
    ]
