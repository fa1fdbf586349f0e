"""Checkpoints: whole or absent, and no damaged or foreign byte believed."""

import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil

import h5py
import numpy as np
import pytest
from commands import command, training
from conftest import run
from sources import write_source

from dpcnn.base import files
from dpcnn.base.files import Folder
from dpcnn.config import Config
from dpcnn.errors import CheckpointError
from dpcnn.runs.checkpoint import Checkpoint, read, weights_sha256, write
from dpcnn.runs.checkpoint_file import BLOCK, MAGIC
from dpcnn.runs.progress import Metrics, Progress
from dpcnn.runs.step_files import prune, step_name

RNG = np.random.default_rng(9)


LAYERS = [{"kind": "scale"}, {"kind": "flatten"}, {"kind": "linear", "bias": True}]
EPOCH = {
    "event": "epoch", "epoch": 1, "step": 12, "train_loss": 2.0, "train_accuracy": 0.5, "validation_loss": 2.1,
    "validation_accuracy": 0.1, "learning_rate": 0.003, "seconds": 1.5, "images_per_second": 100.0,
}  # fmt: skip


NAMES = ("cat", "größer", "dog, small", "3")


def example(step: int = 12) -> Checkpoint:
    config = Config(model="a few weights", layers=LAYERS, seed=3)
    network = config.network((8, 9, 1), 4)
    vector = RNG.standard_normal(network.size).astype(np.float32)
    optimizer = {name: RNG.standard_normal(network.size).astype(np.float32) for name in ("m", "v")}
    progress = Progress(step, 1, Metrics(0.1 + 0.2, 5, 7), 1.5, 2.5, [EPOCH | {"step": step}])
    numerics = {"numpy": "2", "blas": "some", "cpu_features": ["AVX2"], "machine": "x86_64"}
    return Checkpoint(
        network.views(vector),
        optimizer,
        progress,
        config,
        (8, 9, 1),
        NAMES,
        "crop",
        "d" * 64,
        weights_sha256(vector),
        numerics,
    )


def test_everything_comes_back(tmp_path):
    path, stored = tmp_path / "c.h5", example()
    write(path, stored)
    found = read(path)
    assert list(found.parameters) == list(stored.parameters)
    for name in stored.parameters:
        np.testing.assert_array_equal(found.parameters[name], stored.parameters[name])
    np.testing.assert_array_equal(found.optimizer["m"], stored.optimizer["m"])
    assert found.state() == stored.state()
    assert os.listdir(tmp_path) == ["c.h5"]


def test_a_checkpoint_of_an_older_version_has_the_defaults_of_what_it_lacks(tmp_path, monkeypatch):
    """Class names, the way to resize, and options of augmentation came later."""
    stored = example()
    state = stored.state()
    del state["class_names"], state["resize"]
    for option in ("flip", "crop_padding", "crop_area", "colour_jitter", "cutout"):
        del state["config"][option]
    monkeypatch.setattr(Checkpoint, "state", lambda self: state)
    write(tmp_path / "old.h5", stored)
    monkeypatch.undo()
    found = read(tmp_path / "old.h5")
    assert (found.class_names, found.resize, found.config) == (("0", "1", "2", "3"), "crop", stored.config)


def test_the_same_state_has_the_same_bytes(tmp_path):
    stored = example()
    for name in ("one", "two"):
        write(tmp_path / name, stored)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def written_by_h5py(path, checkpoint) -> None:
    """A checkpoint with elements that h5py writes itself."""
    with (
        open(path, "w+b") as opened,
        h5py.File(opened, "w", userblock_size=BLOCK, libver="earliest", track_order=True) as file,
    ):
        for title, arrays in (("parameters", checkpoint.parameters), ("optimizer", checkpoint.optimizer)):
            group = file.create_group(title, track_order=True)
            for key, array in arrays.items():
                group.create_dataset(key, data=array, track_times=False)
        file.create_dataset("state", data=np.frombuffer(json.dumps(checkpoint.state()).encode(), np.uint8))
    body = path.read_bytes()[BLOCK:]
    path.write_bytes((MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n").ljust(BLOCK, b"\0") + body)


@pytest.mark.parametrize("piece", [1, 1000, 4 << 20])
def test_the_bytes_are_those_that_h5py_writes(tmp_path, monkeypatch, piece):
    shapes = [(3,), (1, 1), (5, 7), (3, 3, 8, 16), (16384,), (300, 200)] if piece > 1 else [(3,), (1, 1), (5, 7)]
    arrays = [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]
    stored = dataclasses.replace(
        example(),
        parameters={f"linear{number}.w": array for number, array in enumerate(arrays)},
        optimizer={"v": arrays[-1].ravel(), "m": arrays[0]},
    )
    monkeypatch.setattr("dpcnn.runs.checkpoint_file.PIECE", piece)
    write(tmp_path / "ours", stored)
    written_by_h5py(tmp_path / "theirs", stored)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "c.h5"
    write(path, example())
    whole = path.read_bytes()
    places = [*range(0, BLOCK, 7), *RNG.integers(BLOCK, len(whole), 200).tolist(), len(whole) - 1]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged|not a dpcnn checkpoint"):
            read(path)


def test_every_cut_is_found(tmp_path):
    path = tmp_path / "c.h5"
    write(path, example())
    whole = path.read_bytes()
    for length in (0, 1, len(MAGIC), BLOCK - 1, BLOCK, BLOCK + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="damaged|not a dpcnn checkpoint"):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read(path)
    with pytest.raises(CheckpointError, match="No such file"):
        read(tmp_path / "nowhere.h5")


def forge(path, change) -> None:
    """Change the inside of a checkpoint, and make its sum right again."""
    image = io.BytesIO(path.read_bytes())
    with h5py.File(image, "a") as file:
        change(file)
    body = image.getvalue()[BLOCK:]
    path.write_bytes((MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n").ljust(BLOCK, b"\0") + body)


def replace(name: str, value):
    def change(file):
        if name in file:
            del file[name]
        file[name] = value

    return change


def external_storage(file):
    del file["parameters/linear1.b"]
    file.create_dataset("parameters/linear1.b", (4,), np.float32, external=[("/etc/passwd", 0, 16)])


def bomb(file):
    del file["parameters/linear1.b"]
    file.create_dataset("parameters/linear1.b", (10**9,), np.float32, chunks=(10**6,), compression="gzip")


def edited_state(**changes):
    def change(file):
        state = json.loads(file["state"][()].tobytes()) | changes
        del file["state"]
        file["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)

    return change


def edited_config(**changes):
    return edited_part("config", changes)


def edited_cursor(**changes):
    return edited_part("progress", changes)


def edited_part(part, changes):
    def change(file):
        state = json.loads(file["state"][()].tobytes())
        edited_state(**{part: state[part] | changes})(file)

    return change


def reshape(file):
    values = file["parameters/linear1.b"][...]
    replace("parameters/linear1.b", values.reshape(2, 2))(file)


FORGERIES = {
    "external link": (
        replace("parameters/linear1.b", h5py.ExternalLink("/etc/passwd", "x")),
        "expected a dataset in the file itself",
    ),
    "external group": (
        replace("optimizer", h5py.ExternalLink("/tmp/x.h5", "/")),
        "expected a group 'optimizer' in the file itself",
    ),
    "soft link": (
        replace("parameters/linear1.b", h5py.SoftLink("/optimizer/m")),
        "expected a dataset in the file itself",
    ),
    "external storage": (external_storage, "expected plain float32 values in the file itself"),
    "decompression bomb": (bomb, "expected plain float32 values in the file itself"),
    "wrong type": (replace("parameters/linear1.b", np.zeros(4)), "expected plain float32"),
    "no state": (lambda file: file.__delitem__("state"), "expected a dataset in the file itself"),
    "state no JSON": (replace("state", np.frombuffer(b"{]", np.uint8)), "not a checkpoint that this dpcnn understands"),
    "state of another kind": (replace("state", np.frombuffer(b"[1]", np.uint8)), "not a checkpoint that this dpcnn"),
    "negative step": (
        edited_state(progress={"step": -1, "epochs": 0, "metrics": {}, "epoch_seconds": 0, "seconds": 0, "events": []}),
        "progress.step: expected a whole number from 0",
    ),
    "config of the future": (edited_state(config={"quantum": 1}), "unknown key 'quantum'"),
    "config without a field": (edited_state(config={}), "config.model is missing"),
    "a network larger than the file": (
        edited_config(layers=[{"kind": "flatten"}, {"kind": "linear", "features": 60_000}, {"kind": "linear"}]),
        "parameters are more than the file can hold",
    ),
    "half of the optimizer's vectors": (lambda file: file.__delitem__("optimizer/v"), "expected m, v, found m"),
    "an optimizer's vector that is not finite": (
        replace("optimizer/v", np.full(292, np.inf, np.float32)),
        "optimizer/v: some values are not finite",
    ),
    "not a number": (
        replace("parameters/linear1.b", np.full(4, np.nan, np.float32)),
        "some values are not finite|weights_sha256: does not match",
    ),
    "other weights than its sum": (
        replace("parameters/linear1.b", np.zeros(4, np.float32)),
        "weights_sha256: does not match",
    ),
    "a parameter of another shape": (reshape, "of another model: linear1.b is"),
    "no numbers at all": (replace("parameters/linear1.b", h5py.Empty("f4")), "expected plain float32"),
    "an image without channels": (edited_state(image_shape=[28, 28]), "image_shape: expected 3 whole numbers"),
    "sides without bounds": (edited_state(image_shape=[10**9, 9, 1]), "image_shape: expected a whole number from 1"),
    "classes without bounds": (edited_state(classes=10**12), "classes: expected a whole number from 1"),
    "a class without a name": (edited_state(class_names=["a", "b", "c"]), "class_names: expected 4 names, not 3"),
    "a name twice": (edited_state(class_names=["a", "b", "c", "b"]), "class_names: two classes have the name 'b'"),
    "a name for the terminal": (
        edited_state(class_names=["a", "b", "c", "\x1b[2J"]),
        "class_names: expected a name of",
    ),
    "a name without end": (edited_state(class_names=["a", "b", "c", "d" * 300]), "class_names: expected a name of"),
    "names of another kind": (edited_state(class_names={"a": 1}), "class_names: expected a list"),
    "an unknown way to resize": (edited_state(resize="stretch"), "resize: expected crop or mnist, not 'stretch'"),
    "infinity": (edited_state(classes=float("inf")), "Infinity is not a number"),
    "a model of two lines": (edited_config(model="x\ntouch PWNED\n#"), "--model: expected a name of printable"),
    "a terminal's escape": (edited_config(model="\x1b[2J"), "--model: expected a name of printable"),
    "layers without kind": (edited_config(layers=[{"kind": []}]), "layer 1: no kind"),
    "filters without bounds": (
        edited_config(layers=[{"kind": "conv2d", "filters": 10**9, "kernel_size": 3}]),
        "at most 65536",
    ),
    "seconds of another type": (edited_cursor(seconds="x"), "progress.seconds: expected a finite number"),
    "epoch's seconds of another type": (edited_cursor(epoch_seconds=None), "progress.epoch_seconds: expected a finite"),
    "a loss of another type": (
        edited_cursor(metrics={"loss": "x", "correct": 1, "count": 2}),
        "metrics.loss: expected a",
    ),
    "epochs without events": (edited_cursor(epochs=10**9), "1000000000 epochs, but events of 1"),
    "a step beyond all": (edited_cursor(step=10**40), "progress.step: expected a whole number"),
    "an event of no kind": (edited_cursor(events=[{"event": "x"}]), "no event 'x'"),
    "nested without end": (replace("state", np.frombuffer(b"[" * 100_000, np.uint8)), "nested too deeply"),
    "fingerprint without keys": (edited_state(fingerprint={}), "fingerprint.cpu_features is missing"),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_forgeries_are_refused(kind, tmp_path):
    change, message = FORGERIES[kind]
    write(tmp_path / "c.h5", example())
    forge(tmp_path / "c.h5", change)
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "c.h5")


def test_names_that_nobody_asks_for_cost_nothing(tmp_path):
    """A group may list one dataset 20,000 times: only the names of the network and the optimizer are looked up."""
    stored = example()
    write(tmp_path / "c.h5", stored)

    def many_names(file):
        for number in range(20_000):
            file[f"parameters/x{number}"] = file["parameters/linear1.w"]

    forge(tmp_path / "c.h5", many_names)
    assert read(tmp_path / "c.h5").state() == stored.state()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    write(path, example(1))
    for failing in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*_, **__):
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(files.os, failing, fail)
            with pytest.raises(
                CheckpointError, match="No space left on device.*the one before it is untouched: make room, then try"
            ):
                write(path, example(2))
        assert read(path).progress.step == 1
        assert os.listdir(tmp_path) == ["c.h5"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        (tmp_path / step_name(step)).touch()
    (tmp_path / "notes.txt").touch()
    with Folder(tmp_path) as folder:
        prune(folder, 2, step_name(2))
        assert folder.names() == ["notes.txt", *map(step_name, (2, 4, 5))]
        prune(folder, 1, step_name(4))
        assert folder.names() == ["notes.txt", *map(step_name, (4, 5))]


@pytest.fixture(scope="module")
def run_folder(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    assert training(*quick, "--out", folder, "--max-steps", "8").status == 0
    return folder


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def link(path) -> None:
    forge(path, replace("parameters/linear1.w", h5py.ExternalLink("/etc/passwd", "x")))


SPOILED = {
    cut: "damaged: its",
    flip: "damaged: its",
    link: "understands (/parameters/linear1.w: expected a dataset in the file itself, not a link",
}


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_spoiled_checkpoint_stops_the_command_with_one_line(run_folder, tmp_path, spoil, name):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder, symlinks=True)
    newest, last = folder / "checkpoints" / "step-00000008.h5", folder / "checkpoints" / "last.h5"
    spoil(newest)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = command(name, *(["--resume", "--out", folder] if name == "train" else [last]), ranks=3)
    assert result.status == 2
    assert len(result.errors) == 1 and SPOILED[spoil] in result.errors[0]
    assert f"dpcnn: error: {newest if name == 'train' else last}: " in result.errors[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    if name == "train":  # what the line advises
        newest.unlink()
        assert "resuming from step-00000007.h5" in training("--resume", "--out", folder, ranks=2).out


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_spoiled_checkpoint_under_mpirun(run_folder, tmp_path, name):
    cut(shutil.copy(run_folder / "checkpoints" / "last.h5", tmp_path / "c.h5"))
    result = run(3, "-m", f"dpcnn.{name}", *(["--resume"] if name == "train" else []), tmp_path / "c.h5")
    assert result.status == 2 and len(result.errors) == 1
    assert f"dpcnn: error: {tmp_path / 'c.h5'}: damaged: its" in result.errors[0]


def test_a_checkpoint_of_another_model(run_folder, small, npz, tmp_path):
    checkpoint = run_folder / "checkpoints" / "last.h5"
    result = training("--resume", checkpoint, "--model", "mlp", "--max-steps", "9", ranks=2)
    assert result.status == 2
    assert result.errors[0].startswith("dpcnn: error: --model:") and "can't be resumed with mlp" in result.errors[0]

    write(tmp_path / "forged.h5", read(checkpoint))
    forge(tmp_path / "forged.h5", edited_config(model="mlp"))
    result = training("--resume", tmp_path / "forged.h5", "--out", tmp_path / "run", ranks=2)
    assert result.status == 2
    (line,) = result.errors
    assert (
        "the checkpoint is of another model: linear1.w is (576, 512) in the checkpoint and (144, 128) in the model"
        in line
    )
    assert not (tmp_path / "run").exists()


def test_other_data_than_the_checkpoint_s(run_folder, tmp_path):
    out = tmp_path / "set"
    assert command("data", "prepare", write_source(tmp_path / "s", "npz"), "--out", out).status == 0
    last = run_folder / "checkpoints" / "last.h5"
    result = training("--resume", last, "--data", out, "--max-steps", "9", ranks=2)
    assert result.status == 2 and "trained on other data than" in result.errors[0]
