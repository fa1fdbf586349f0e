"""Images of uint16 and floats: stored as they are, trained on the scale of uint8, with the same bits on any ranks."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command, training
from sources import edit_manifest, synthetic

from dpcnn.data.dataset import load
from dpcnn.data.moments import Moments
from dpcnn.data.shards import MANIFEST, read_manifest
from dpcnn.errors import DataError
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read

(X, Y), (X_TEST, Y_TEST) = synthetic(200, 1), synthetic(60, 2)
FINE = np.random.default_rng(3).random(X.shape)
"""What is added to a level of uint8."""

IMAGES = {
    "uint16": (257.0 * X + 200 * FINE).astype(np.uint16),
    "float16": ((X + FINE) / 256).astype(np.float16),
    "float32": ((X + FINE) / 256).astype(np.float32),
}
OF_TEST = {
    "uint16": X_TEST * np.uint16(257),
    "float16": (X_TEST / 255).astype("f2"),
    "float32": (X_TEST / 255).astype("f4"),
}
WHITE = {"uint16": 65535, "float16": 1, "float32": 1}


def write(path: Path, form: str, arrays: dict[str, np.ndarray]) -> str:
    """Arrays as a source; returns how to name it."""
    if form == "npy":
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
        return str(path)
    if form == "hdf5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file.create_dataset(name, data=array, compression="gzip", shuffle=True)
        return f"{path}:x_train,y_train,x_test,y_test"
    {"npz": np.savez, "packed npz": np.savez_compressed}[form](path.with_suffix(".npz"), **arrays)
    return str(path.with_suffix(".npz"))


def arrays(kind: str) -> dict[str, np.ndarray]:
    """The arrays of a source."""
    return {"x_train": IMAGES[kind], "y_train": Y, "x_test": OF_TEST[kind], "y_test": Y_TEST}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(
    ("form", "flags"), [("npz", []), ("packed npz", ["--contiguous"]), ("npy", ["--contiguous"]), ("hdf5", [])]
)
def test_images_come_back_from_every_source_with_the_same_bytes_on_any_ranks(form, flags, kind, tmp_path):
    source = write(tmp_path / "source", form, arrays(kind))
    found = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks) / "set"
        result = command("data", "prepare", source, "--out", out, "--shards", "3", *flags, ranks=ranks)
        assert result.status == 0, result.err
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
    samples = load(out, "train", SerialComm())
    assert samples.manifest.pixels == kind and samples.max_value == WHITE[kind]
    stored = np.concatenate([piece[np.arange(len(piece))] for piece in samples.pieces])
    assert stored.dtype == kind
    np.testing.assert_array_equal(stored[..., 0], IMAGES[kind])
    numbers = np.random.default_rng(0).permutation(200)
    taken, labels = samples.take(numbers)
    assert taken.dtype == np.float32
    expected = IMAGES[kind][numbers].astype(np.float64) * 255 / WHITE[kind]
    np.testing.assert_allclose(taken[..., 0], expected, rtol=2e-7)
    np.testing.assert_array_equal(labels, Y[numbers])


def prepare(tmp_path: Path, images: np.ndarray, *flags, status: int = 0, out: str = "set"):
    """Prepare these training images."""
    np.savez(tmp_path / f"{out}.npz", x_train=images, y_train=np.arange(len(images)) % 3)
    result = command(
        "data", "prepare", tmp_path / f"{out}.npz", "--out", tmp_path / out, "--test", "6", *flags, ranks=2
    )
    assert result.status == status, result.err
    return result


def test_the_identity_includes_type_and_white_and_not_the_byte_order(tmp_path):
    images = (np.arange(30 * 6 * 6) * 2).reshape(30, 6, 6).astype(np.uint16)
    prepare(tmp_path, images, out="a")
    prepare(tmp_path, images.astype(">u2"), "--contiguous", out="b")
    prepare(tmp_path, images, "--max-value", "4095", out="c")
    a, b, c = (read_manifest(tmp_path / name).checksum for name in "abc")
    assert a == b != c
    assert read_manifest(tmp_path / "c").max_value == 4095
    text = command("data", "info", tmp_path / "c").out
    assert "images 6 x 6 x 1 of uint16, white is 4095, 3 classes" in text


def test_a_manifest_of_uint8_is_as_before(tmp_path):
    prepare(tmp_path, np.zeros((30, 6, 6), np.uint8))
    values = json.loads((tmp_path / "set" / MANIFEST).read_text())
    assert "pixels" not in values and "max_value" not in values


@pytest.mark.parametrize(
    ("images", "flags", "message"),
    [
        (np.full((30, 6, 6), 1.5, "f4"), [], "images: values from 1.5 to 1.5, expected 0 to 1; give --max-value"),
        (np.full((30, 6, 6), -0.5, "f2"), [], "images: values from -0.5 to -0.5, expected 0 to 1"),
        (np.full((30, 6, 6), np.nan, "f4"), [], "images: some values are not finite; replace them"),
        (np.full((30, 6, 6), 300, "u2"), ["--max-value", "255"], "images: values from 300 to 300, expected 0 to 255"),
        (np.zeros((30, 6, 6), "f8"), [], "expected images of uint8, uint16, float16, float32, one type for all, not"),
        (np.zeros((30, 6, 6), "i2"), [], "expected images of uint8, uint16, float16, float32, one type for all, not"),
        (np.zeros((30, 6, 6), "u1"), ["--max-value", "9"], "--max-value: the images of"),
        (np.zeros((30, 6, 6), "u2"), ["--max-value", "0"], "--max-value: expected a number from 1e-30"),
        (np.zeros((30, 6, 6), "u2"), ["--max-value", "nan"], "--max-value: expected a finite number"),
    ],
)
def test_what_can_t_be_stored_is_told(images, flags, message, tmp_path):
    result = prepare(tmp_path, images, *flags, status=2)
    assert len(result.errors) == 1 and message in result.errors[0]
    assert not (tmp_path / "set").exists()


def test_splits_have_one_type(tmp_path):
    source = write(tmp_path / "source", "npz", arrays("uint16") | {"x_test": X_TEST})
    result = command("data", "prepare", source, "--out", tmp_path / "set")
    assert result.status == 2 and "one type for all, not uint16, uint8; convert them" in result.errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.update(pixels="float64"),
            "pixels: expected one of uint8, uint16, float16, float32, not 'float64'",
        ),
        (lambda m: m.update(pixels="uint8"), "pixels: expected one of"),
        (lambda m: m.update(max_value=0), "max_value: expected a number from 1e-30"),
        (lambda m: m.pop("max_value"), "max_value is missing"),
        (lambda m: m.update(pixels="float16"), "images are uint16 (24, 6, 6, 1), but manifest.json says float16"),
    ],
)
def test_a_manifest_that_is_not_so(change, message, tmp_path):
    prepare(tmp_path, np.zeros((30, 6, 6), np.uint16), "--shards", "1")
    edit_manifest(tmp_path / "set", change)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "set", "train", SerialComm())
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", IMAGES)
def test_mean_and_deviation_are_those_of_the_values(kind, tmp_path):
    moments = Moments(1, WHITE[kind])
    for part in np.array_split(IMAGES[kind][..., None], 7):
        moments.add(part)
    (mean,), (deviation,) = moments.mean_and_deviation()
    values = IMAGES[kind].astype(np.float64) * 255 / WHITE[kind]
    assert mean == pytest.approx(values.mean(), abs=1e-3) and deviation == pytest.approx(values.std(), abs=1e-3)


def test_sums_do_not_overflow():
    moments = Moments(1, 65535)
    moments.sums[:] = [[2**40], [2**40 * 65535 // 2], [2**40 * 65535**2 // 2]]
    moments.add(np.full((4, 2, 2, 1), 65535, np.uint16))
    moments.gather(SerialComm())
    (mean,), (deviation,) = moments.mean_and_deviation()
    assert mean == pytest.approx(127.5) and deviation == pytest.approx(127.5)


WORDS = ["--validation", "50", "--batch", "50", "--epochs", "1", "--model", "small-cnn", "--warmup", "0"]


@pytest.fixture(scope="module")
def run_of_uint16(tmp_path_factory):
    """A short run on 1 and 3 ranks, with the same weights; returns their folder."""
    folder = tmp_path_factory.mktemp("uint16")
    source = write(folder / "source", "npz", arrays("uint16"))
    for out, flags in (("set", []), ("files", ["--contiguous"])):
        assert command("data", "prepare", source, "--out", folder / out, *flags).status == 0
    hashes = set()
    for ranks, data in ((1, "set"), (3, "set"), (2, "files")):
        words = [*WORDS, "--colour-jitter", "0.2", "--crop-padding", "1", "--out", folder / f"run{ranks}"]
        result = training("--data", folder / data, *words, ranks=ranks)
        assert result.status == 0, result.err
        hashes.add(read(folder / f"run{ranks}" / "checkpoints" / "last.h5").weights_sha256)
    assert len(hashes) == 1
    return folder


def test_multiples_of_uint8_train_like_uint8(tmp_path):
    hashes = set()
    for images in (X, X * np.uint16(257)):
        out = str(images.dtype)
        prepare(tmp_path, images, out=out)
        result = training("--data", tmp_path / out, *WORDS, "--out", tmp_path / f"run of {out}")
        assert result.status == 0, result.err
        hashes.add(read(tmp_path / f"run of {out}" / "checkpoints" / "last.h5").weights_sha256)
    assert len(hashes) == 1


def test_predictions_take_arrays_of_the_training_s_type_and_uint8(run_of_uint16, tmp_path):
    run = run_of_uint16 / "run1"
    assert read(run / "checkpoints" / "last.h5").max_value == 65535
    lines = []
    for images in (X_TEST[:3], X_TEST[:3] * np.uint16(257)):
        np.savez(tmp_path / "x.npz", x=images)
        lines.append(command("predict", run, tmp_path / "x.npz", "--json").out)
    assert lines[0] == lines[1] != ""
    np.savez(tmp_path / "x.npz", x=np.full((3, 12, 12), -1, np.float32))
    result = command("predict", run, tmp_path / "x.npz")
    assert result.status == 2 and "x.npz: values from -1 to -1, expected 0 to 65535" in result.errors[0]


def test_evaluation_and_page(run_of_uint16, tmp_path):
    pytest.importorskip("matplotlib")
    assert json.loads(command("evaluate", run_of_uint16 / "run1", "--json", ranks=2).out)["samples"] == 60
    result = command("data", "show", run_of_uint16 / "set", "--page", tmp_path / "samples.html")
    assert result.status == 0 and not result.err, result.err


def test_colour_floats_are_drawn_in_colour(tmp_path, caplog):
    pytest.importorskip("matplotlib")
    images = np.random.default_rng(0).random((60, 8, 8, 3), np.float32)
    prepare(tmp_path, images)
    words = ["--data", tmp_path / "set", "--validation", "10", "--batch", "10", "--epochs", "1", "--model", "mlp"]
    assert training(*words, "--warmup", "0", "--out", tmp_path / "run").status == 0
    result = command("report", tmp_path / "run", "--out", tmp_path / "page.html")
    assert result.status == 0 and not result.err, result.err
    assert not caplog.records  # of matplotlib, about values that it clips
