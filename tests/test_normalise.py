"""The mean and the deviation of the data's channels: measured once, and part of every network that needs them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import command, training
from sources import edit_manifest

import dpcnn
from dpcnn.config import Config
from dpcnn.data.moments import Moments, moments_of
from dpcnn.data.shards import parse_manifest, read_manifest
from dpcnn.errors import DataError
from dpcnn.runs.checkpoint import read

RECIPE = """model = "normalised"
epochs = 1
batch = 24
microbatch = 5

[[layers]]
kind = "normalise"

[[layers]]
kind = "flatten"

[[layers]]
kind = "linear"
"""


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """70 training images of 6 x 5 x 3, the last channel constant, in three classes."""
    rng = np.random.default_rng(5)
    made = {f"x_{split}": rng.integers(0, 200, (n, 6, 5, 3), np.uint8) for split, n in (("train", 70), ("test", 4))}
    made["x_train"][..., 1] //= 3
    made["x_train"][..., 2] = 7
    return {**made, "y_train": np.arange(70) % 3, "y_test": np.arange(4) % 3}


@pytest.fixture(scope="module")
def prepared(arrays, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("normalised")
    np.savez(folder / "source.npz", **arrays)
    for ranks in (1, 3):
        result = command("data", "prepare", folder / "source.npz", "--out", folder / str(ranks), ranks=ranks)
        assert result.status == 0, result.err
    assert read_manifest(folder / "1") == replace(read_manifest(folder / "3"), name="1")
    return folder / "1"


def test_prepare_measures_the_training_images(prepared, arrays):
    manifest, images = read_manifest(prepared), arrays["x_train"].astype(float)
    np.testing.assert_allclose(manifest.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(manifest.deviation, [*images.std(axis=(0, 1, 2))[:2], 1], rtol=1e-9)


def test_the_sums_of_large_sets_are_exact():
    moments = Moments(1)
    moments.sums[:, 0] = 2**40, 2**40 + 1, 2**40 + 3  # all are 1, but for one that is 2
    mean, deviation = moments.mean_and_deviation()
    assert mean == (1 + 2**-40,) and deviation[0] == pytest.approx(2**-20, rel=1e-6)


def test_a_training_fills_them_in_and_any_ranks_give_the_same(prepared, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    found = {}
    for ranks in (1, 2, 3):
        out = tmp_path / str(ranks)
        result = training("--recipe", tmp_path / "mine.toml", "--data", prepared, "--out", out, ranks=ranks)
        assert result.status == 0, result.err
        found[ranks] = read(out / "checkpoints" / "last.h5")
    (sha256,) = {each.weights_sha256 for each in found.values()}
    cut = training(
        "--recipe", tmp_path / "mine.toml", "--data", prepared, "--max-steps", "2", "--out", tmp_path / "cut"
    )
    assert cut.status == 0, cut.err
    first, manifest = found[1].config.layers[0], read_manifest(prepared)
    assert first == {"kind": "normalise", "mean": [*manifest.mean], "deviation": [*manifest.deviation]}
    resumed = training("--resume", "--max-steps", "0", "--out", tmp_path / "cut")
    assert resumed.status == 0 and read(tmp_path / "cut" / "checkpoints" / "last.h5").weights_sha256 == sha256
    assert command("evaluate", tmp_path / "1").status == 0


@pytest.mark.parametrize("name", ["simple-cnn", "normalised"])
def test_the_same_command_resumes_a_run_also_one_that_an_older_version_has_named(prepared, tmp_path, name):
    """The second start was refused for the values that the first one had filled in."""
    recipe, begun = tmp_path / "normalised.toml", tmp_path / "begun.toml"
    recipe.write_text(RECIPE.partition("\n")[2])
    begun.write_text(RECIPE.replace("normalised", name))
    flags = ["--data", prepared, "--out", tmp_path / "run", "--resume", "auto"]
    assert training("--recipe", begun, *flags, "--max-steps", "2").status == 0
    result = training("--recipe", recipe, *flags, "--max-steps", "0")
    assert result.status == 0, result.err
    assert read(tmp_path / "run" / "checkpoints" / "last.h5").config.model == name
    recipe.write_text(recipe.read_text().replace('"normalise"', '"normalise"\nmean = [1.0, 2.0, 3.0]'))
    assert " was started with " in training("--recipe", recipe, *flags).errors[0]


def test_a_fit_continues_a_run_that_has_filled_them_in(prepared, tmp_path):
    layers = [{"kind": "normalise"}, {"kind": "flatten"}, {"kind": "linear"}]
    options = {"epochs": 2, "batch": 24, "schedule": "constant", "verbose": False}
    dpcnn.Classifier(layers, **options, max_steps=2).fit(prepared, out=tmp_path / "run")
    continued = dpcnn.Classifier(layers, **options).fit(prepared, out=tmp_path / "run")
    assert continued.weights_sha256 == dpcnn.Classifier(layers, **options).fit(prepared).weights_sha256


def test_a_fit_measures_the_training_images_of_arrays(prepared, arrays, tmp_path):
    """Arrays had no mean and no deviation, so a network with this layer was refused."""
    layers = [{"kind": "normalise"}, {"kind": "flatten"}, {"kind": "linear"}]
    options = {"epochs": 2, "batch": 24, "microbatch": 5, "schedule": "constant", "verbose": False}
    X, y = arrays["x_train"], arrays["y_train"]
    model = dpcnn.Classifier(layers, **options).fit(X, y, validation=(X[:9] // 2, y[:9]))
    manifest = read_manifest(prepared)
    assert model.checkpoint_.config.layers[0] == {
        "kind": "normalise",
        "mean": [*manifest.mean],
        "deviation": [*manifest.deviation],
    }
    of_set = dpcnn.Classifier(layers, **options).fit(prepared, validation=0)
    assert dpcnn.Classifier(layers, **options).fit(X, y).weights_sha256 == of_set.weights_sha256
    dpcnn.Classifier(layers, **options, max_steps=2).fit(X, y, out=tmp_path / "run")
    assert dpcnn.Classifier(layers, **options).fit(X, y, out=tmp_path / "run").weights_sha256 == of_set.weights_sha256
    model.save(tmp_path / "net.h5")
    np.testing.assert_array_equal(dpcnn.load(tmp_path / "net.h5").predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize("block", [1, 500, 1 << 24])
def test_floats_are_measured_without_rounding(block, monkeypatch):
    monkeypatch.setattr("dpcnn.data.moments.BLOCK", block)
    images = np.random.default_rng(1).normal(100, 90, (70, 4, 5, 3)).astype(np.float32)
    images[..., 2] = 0.1
    mean, deviation = moments_of(images)
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2), dtype=float), rtol=1e-12)
    np.testing.assert_allclose(deviation[:2], images.std(axis=(0, 1, 2), dtype=float)[:2], rtol=1e-12)
    assert deviation[2] == 1


def test_values_of_the_recipe_are_kept_and_nothing_is_measured(monkeypatch):
    layers = [{"kind": "normalise", "mean": [1.0], "deviation": [2.0]}, {"kind": "flatten"}, {"kind": "linear"}]
    config = Config(layers=layers)
    assert config.measured([5.0], [6.0]) == config
    monkeypatch.delattr("dpcnn.estimators.estimator.moments_of")
    X, y = np.zeros((4, 2, 2), np.uint8), [0, 1, 0, 1]
    model = dpcnn.Classifier(layers, max_steps=1, batch=4, verbose=False).fit(X, y)
    assert model.checkpoint_.config.layers == layers


def test_a_data_set_of_before_is_told(prepared, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    old = tmp_path / "old"
    old.mkdir()
    for path in prepared.iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    edit_manifest(old, lambda manifest: [manifest.pop(key) for key in ("mean", "deviation")])
    result = training("--recipe", tmp_path / "mine.toml", "--data", old, "--out", tmp_path / "run")
    assert result.status == 2 and "normalise1: mean and deviation are missing" in result.errors[0]
    assert "write both into the layer, or prepare the data set again" in result.errors[0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", [1, 2], "mean: expected 3 numbers, not 2"),
        ("mean", [1, 2, 256], "mean: expected a number from 0 to 255"),
        ("mean", [1, 2, "3"], "mean: expected a finite number"),
        ("deviation", [1, 0, 1], "deviation: expected a number from 1e-09 to 255"),
        ("deviation", 3, "deviation: expected a list"),
    ],
)
def test_wrong_values_in_a_manifest_are_refused(key, value, message, prepared, tmp_path):
    (tmp_path / "manifest.json").write_bytes((prepared / "manifest.json").read_bytes())
    edit_manifest(tmp_path, lambda manifest: manifest.update({key: value}))
    with pytest.raises(DataError, match=message):
        parse_manifest(tmp_path / "manifest.json", (tmp_path / "manifest.json").read_bytes())
