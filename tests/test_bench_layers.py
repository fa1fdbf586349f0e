"""The measurements of layers: what they say adds up. How fast anything is, no test asks."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
from commands import command
from conftest import ROOT, Job, run

from dpcnn.evidence.layers import Work, layer_row, random, time_layer, time_layers, total, work_of
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
TORCH = importlib.util.find_spec("torch") is not None

WIRED = [
    {"kind": "scale", "name": "scaled"},
    {"kind": "conv2d", "filters": 4, "kernel_size": 3, "padding": 1, "bias": True},
    {"kind": "batchnorm"},
    {"kind": "relu", "name": "one"},
    {"kind": "conv2d", "filters": 4, "kernel_size": 3, "padding": 1},
    {"kind": "add", "with": ["one"]},
    {"kind": "flatten"},
    {"kind": "linear"},
]


def test_work_by_hand():
    network = Network((28, 28, 1), build(MODELS["simple-cnn"], 10))
    scale, conv1, conv2, linear = (
        work_of(network, network.names.index(n), 2) for n in ("scale1", "conv2d1", "conv2d2", "linear1")
    )
    assert scale == Work((0, 0), (4 * 2 * 2 * 28 * 28, 0))  # nothing in front of it learns
    outputs, weights = 2 * 28 * 28 * 16, 9 * 16
    flops = 2 * outputs * 9
    assert conv1.flops == (flops, flops)  # no gradient of the images
    assert conv1.bytes == (4 * (2 * 28 * 28 + outputs + weights), 4 * (2 * 28 * 28 + outputs + 2 * weights))
    inputs, outputs, weights = 2 * 14 * 14 * 16, 2 * 14 * 14 * 32, 9 * 16 * 32
    flops = 2 * outputs * 9 * 16
    assert conv2 == Work(
        (flops, 2 * flops), (4 * (inputs + outputs + weights), 4 * (2 * inputs + outputs + 2 * weights))
    )
    assert linear.flops == (2 * 2 * 3136 * 512, 4 * 2 * 3136 * 512)
    assert sum(sum(work_of(network, number, 1).flops) for number in range(len(network.layers))) == network.flops


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    assert Work((8, 0), (2, 6)).limit(peak=4.0, bandwidth=2.0) == 2.0 + 3.0


def test_every_layer_is_timed_alone():
    network = Network((8, 8, 3), build(WIRED, 5))
    times = time_layers(network, network.initialise(0), 4)
    assert len(times) == len(network.layers)
    assert all(forward > 0 and backward > 0 for forward, backward in times)


def test_a_timed_layer_leaves_the_arrays_as_they_are():
    network = Network((8, 8, 3), build(WIRED, 5))
    relu, x, dy = network.layers[3], random((8, 8, 4), 2), random((8, 8, 4), 2)
    assert x.shape == (8, 8, 2, 4) and x.min() < 0
    time_layer(relu, [x], {}, dy, 2, learns=True)  # it works in place
    np.testing.assert_array_equal(x, random((8, 8, 4), 2))
    np.testing.assert_array_equal(dy, x)


def test_rows_and_their_sum():
    row = {"name": "a", "output": [2, 3], "forward": 0.001, "backward": 0.003, "flops": 8e6, "bytes": 1, "limit": 0.002}
    other = {**row, "torch_forward": 0.002, "torch_backward": 0.006, "ratios": [1.0, 2.0, 9.0]}
    assert layer_row(row) == ("a", "2x3", "1.000", "3.000", "2", "2.000", "50%", "", "", "")
    assert layer_row(other) == ("a", "2x3", "1.000", "3.000", "2", "2.000", "50%", "2.000", "6.000", "2.00")
    assert layer_row(total([other, other]))[1:] == (
        "",
        "2.000",
        "6.000",
        "2",
        "4.000",
        "50%",
        "4.000",
        "12.000",
        "2.00",
    )
    assert layer_row(total([row, other]))[-3:] == ("", "", "")


def test_the_command(quick, tmp_path):
    words = ["-m", "dpcnn.bench", "--layers", "--rounds", "1", *quick, "--json", tmp_path / "l.json"]
    result = run(0, *words)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "l.json").read_text())
    assert found["microbatch"] == 16 and found["sgemm_peak"] > 0 and found["bandwidth"] > 0
    assert [row["name"] for row in found["layers"]][:2] == ["scale1", "conv2d1"]
    assert all(("ratios" in row) == TORCH for row in found["layers"])
    assert len([line for line in result.out.splitlines() if line.startswith("| ")]) == 3 + len(found["layers"])


def test_a_normalisation_has_the_mean_of_the_data(small, tmp_path):
    (tmp_path / "n.toml").write_text("".join(f'[[layers]]\nkind = "{k}"\n' for k in ("normalise", "flatten", "linear")))
    words = ["--layers", "--rounds", "1", "--recipe", tmp_path / "n.toml", "--data", small]
    result = run(0, "-m", "dpcnn.bench", *words)
    assert result.status == 0 and "| normalise1 |" in result.out, result.err


@needs_torch
def test_a_layer_that_pytorch_lacks_has_no_time_there(small, tmp_path):
    (tmp_path / "odd.py").write_text(
        "from dpcnn.nn.activations import ReLU\nfrom dpcnn.nn.models import KINDS\n"
        "class Odd(ReLU): ...\nKINDS['odd'] = Odd"
    )
    (tmp_path / "odd.toml").write_text(
        "".join(f'[[layers]]\nkind = "{k}"\n' for k in ("scale", "flatten", "odd", "linear"))
    )
    words = ["--layers", "--rounds", "1", "--recipe", tmp_path / "odd.toml", "--import", "odd", "--data", small]
    result = run(0, "-m", "dpcnn.bench", *words, "--json", tmp_path / "l.json", cwd=tmp_path)
    assert result.status == 0, result.err
    layers = json.loads((tmp_path / "l.json").read_text())["layers"]
    assert [row["name"] for row in layers if "ratios" not in row] == ["odd1"]


@needs_torch
def test_a_normalisation_of_a_single_value_has_no_time_in_pytorch(small, tmp_path):
    (tmp_path / "one.toml").write_text(
        "".join(f'[[layers]]\nkind = "{k}"\n' for k in ("scale", "flatten", "linear", "batchnorm", "linear"))
    )
    words = ["--layers", "--rounds", "1", "--recipe", tmp_path / "one.toml", "--microbatch", "1", "--data", small]
    result = run(0, "-m", "dpcnn.bench", *words, "--json", tmp_path / "l.json")
    assert result.status == 0, result.err
    layers = json.loads((tmp_path / "l.json").read_text())["layers"]
    assert [row["name"] for row in layers if "ratios" not in row] == ["batchnorm1"]


def test_it_is_of_one_process():
    result = command("bench", "--layers", ranks=2)
    assert result.status == 2
    assert result.errors == ["dpcnn: error: --layers: start it without mpirun; it measures one process"]


@needs_torch
def test_random_convolutions_by_algorithm_and_the_slowest():
    result = Job([sys.executable, ROOT / "docs" / "convolutions.py", "1", "3"]).wait()
    assert result.status == 0, result.err
    kinds, slowest = (table.splitlines()[2:] for table in result.out.split("\n\n"))
    (total,), counts = (
        re.findall(r"^\| all \| (\d+) ", "\n".join(kinds), re.MULTILINE),
        [row.split("|")[2] for row in kinds],
    )
    assert total == "3" and sum(map(int, counts)) == 6
    ratios = [float(row.split("|")[1]) for row in slowest]
    assert len(ratios) == 3 and ratios == sorted(ratios)
