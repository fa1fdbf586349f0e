"""Pictures of runs: which are drawn, and that what is in them is what the net has."""

import numpy as np
import pytest
from commands import command, training

from dpcnn.nn import reference
from dpcnn.recipe import read_recipe
from dpcnn.reporting.first_layer import first_layer
from dpcnn.runs.checkpoint import read

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def runs(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plot")
    for model in ("small-cnn", "mlp"):
        result = training(*quick, "--model", model, "--max-steps", "4", "--out", folder / model)
        assert result.status == 0, result.err
    return folder


def test_the_first_layer_of_a_convolutional_net():
    network = read_recipe("fast").network((12, 12, 1), 10)
    vector = network.initialise(0)
    image = np.random.default_rng(0).integers(0, 256, (1, 12, 12, 1), dtype=np.uint8)
    filters, maps = first_layer(network, vector, image)
    w = network.views(vector)["conv2d1.w"]
    np.testing.assert_array_equal(filters, w[:, :, 0])
    expected = reference.conv2d(image.transpose(1, 2, 0, 3) / 255, w, padding=1)[:, :, 0]
    np.testing.assert_allclose(maps, expected, rtol=1e-5, atol=1e-5)


def test_the_first_layer_of_a_net_without_convolutions():
    network = read_recipe("mlp-adam").network((12, 12, 1), 10)
    vector = network.initialise(0)
    filters, maps = first_layer(network, vector, np.zeros((1, 12, 12, 1), np.uint8))
    assert maps is None
    np.testing.assert_array_equal(filters.reshape(144, 50), network.views(vector)["linear1.w"])


def test_curves_of_two_runs_and_filters(runs, tmp_path):
    result = command("plot", runs / "small-cnn", runs / "mlp", "--filters", "--out", tmp_path / "new", ranks=2)
    assert result.status == 0, result.err
    names = ["compared", "filters", "maps"]
    assert [line.split(" and ")[0].rpartition("/")[2] for line in result.out.splitlines()] == [
        f"{n}.png" for n in names
    ]
    for name in names:
        assert (tmp_path / "new" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "new" / f"{name}.svg").stat().st_size > 0


def test_a_net_without_maps_has_none_drawn(runs):
    result = command("plot", runs / "mlp", "--filters")
    assert result.status == 0 and not (runs / "mlp" / "maps.png").exists()
    assert (runs / "mlp" / "filters.png").exists() and read(runs / "mlp" / "checkpoints" / "last.h5")


def test_mistakes(runs, tmp_path):
    result = command("plot", tmp_path, ranks=2)
    assert result.status == 2 and result.errors == [
        f"dpcnn: error: {tmp_path}: not a run's folder: it has no metrics.jsonl"
    ]
    result = command("plot", runs / "mlp", "--filters", "--sample", "150")
    assert result.status == 2 and "--sample: must be below 150, not 150" in result.errors[0]
    for flag, value in (("--sample", "0"), ("--data", "mnist")):
        result = command("plot", runs / "mlp", flag, value, ranks=2)
        assert result.status == 2 and f"{flag}: has no effect without --filters" in result.errors[0]
