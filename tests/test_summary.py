"""The table of a network's layers."""

import re
from math import prod

import numpy as np
import pytest
from commands import command, training
from conftest import ROOT

from dpcnn.recipe import read_recipe


def test_the_table_of_a_recipe():
    result = command("summary", "lenet5")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "images of 28x28x1, 10 classes"
    assert lines[2].split() == ["layer", "inputs", "output", "parameters", "MFLOP"]
    (conv,) = [line for line in lines if line.split()[:1] == ["conv2d2"]]
    assert conv.split() == [
        "conv2d2",
        "avgpool2d1",
        *"10 x 10 x 16".split(),
        "2,416",
        f"{2 * 100 * 16 * 150 / 1e6:.2f}",
    ]
    assert lines[-2].startswith("61,706 parameters, 0.2 MB; ") and "for a microbatch of 32 images" in lines[-2]
    assert lines[-1] == "augmentation of the training images: none"


def test_the_data_set_can_be_another_than_that_of_the_recipe(tmp_path):
    np.savez(tmp_path / "wide.npz", x_train=np.zeros((60, 8, 12, 3), np.uint8), y_train=np.arange(60) % 3)
    assert command("data", "prepare", tmp_path / "wide.npz", "--out", tmp_path / "wide").status == 0
    result = command("summary", "book-cnn-adam", "--data", tmp_path / "wide")
    assert result.out.startswith("images of 8x12x3, 3 classes\n"), result.err


def test_the_residual_network_has_the_published_size():
    """0.27 million parameters; each shortcut by projection and each normalisation counts."""
    result = command("summary", "resnet20", "--images", "32x32x3")
    assert result.status == 0, result.err
    learned = 432 + 6 * 2304 + 4608 + 5 * 9216 + 18432 + 5 * 36864 + 512 + 2048 + 650
    normalised = 16 * 7 + 32 * 7 + 64 * 7
    last = result.out.splitlines()[-2]
    assert last.startswith(f"272,474 parameters and {2 * normalised:,} running means and variances")
    assert learned + 2 * normalised == 272_474


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fast", "--images", "32x"], "--images: expected height, width and channels, as in 32x32x3, not '32x'"),
        (["fast", "--images", "0x1x1"], "--images: expected height, width and channels, as in 32x32x3, not '0x1x1'"),
        (["fast", "--images", "9x9x1", "--classes", "0"], "--classes: must be from 1 to 65535, not 0"),
        (["fast", "--classes", "3"], "--classes: needs --images, the shape of other images than those of the recipe"),
        (["fast", "--images", "9x9x1", "--data", "mnist"], "--images: not with --data"),
        (["fast", "--data", "nowhere"], "no data set 'nowhere'"),
        (["fast", "--images", "2x2x1"], "images of (2, 2, 1) are too small for this model: "),
        (["vgg11", "--images", "2x2x1"], "images of (2, 2, 1) are too small for this model: "),
        (["fastest"], "--recipe: no recipe and no file 'fastest'"),
    ],
)
def test_a_mistake_is_named(words, message):
    result = command("summary", *words)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]


@pytest.mark.parametrize(
    ("recipe", "shape", "classes", "learned", "multiplications"),
    [
        ("resnet18", (224, 224, 3), 1000, 11_689_512, 1_814_073_344),
        ("vgg11", (32, 32, 3), 10, 9_231_114, 152_769_536),
        ("mobilenet", (224, 224, 3), 1000, 4_231_976, 568_740_352),
    ],
)
def test_networks_have_the_published_number_of_parameters(recipe, shape, classes, learned, multiplications):
    network = read_recipe(recipe).network(shape, classes)
    assert sum(prod(p.shape) for p in network.parameters if not p.momentum) == learned
    assert sum(layer.multiplications for layer in network.layers) == multiplications


def test_the_script_of_the_docs_writes_a_long_recipe(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "nets.md").read_text()
    (script,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "long.toml" in block)
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    result = command("summary", "long.toml", "--images", "32x32x3", cwd=tmp_path)
    assert result.status == 0, result.err
    assert sum(line.split()[0].startswith("add") for line in result.out.splitlines() if line) == 3


@pytest.mark.parametrize("recipe", ["resnet18", "vgg11", "mobilenet"])
def test_the_table_of_a_large_recipe(recipe):
    result = command("summary", recipe)
    assert result.status == 0, result.err
    assert "running means and variances" in result.out.splitlines()[-2]


def test_the_augmentation_of_a_recipe_is_told():
    result = command("summary", "accurate")
    expected = "augmentation of the training images: shift 2, rotation 7, zoom 0.1, elastic 0.5"
    assert result.out.splitlines()[-1] == expected


def test_a_training_and_a_report_count_like_the_summary(quick, small, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    layers = ["scale", "flatten", "linear", "batchnorm", "relu", "linear"]
    tables = [f'[[layers]]\nkind = "{kind}"\n' + "features = 7\n" * (number == 2) for number, kind in enumerate(layers)]
    (tmp_path / "r.toml").write_text("".join(tables))
    counted = f"{144 * 7 + 2 * 7 + 7 * 10:,} parameters and 14 running means and variances"
    assert command("summary", tmp_path / "r.toml", "--images", "12x12x1").out.splitlines()[-2].startswith(counted)
    words = ["--recipe", tmp_path / "r.toml", *quick, "--max-steps", "1", "--out", tmp_path / "run"]
    assert f", {counted}, on small: " in training(*words).out
    assert command("report", tmp_path / "run").status == 0
    assert counted in (tmp_path / "run" / "report.html").read_text()
