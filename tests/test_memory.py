"""Memory: arrays take that of earlier ones, a network keeps only what it needs, and an evaluation has a limit."""

import threading
import tracemalloc

import numpy as np
import pytest
from commands import training

from dpcnn.base import arrays
from dpcnn.base.arrays import empty
from dpcnn.base.rng import SampleRng
from dpcnn.errors import DivergenceError
from dpcnn.nn.activations import ReLU
from dpcnn.nn.layers import Conv2d, Flatten, Linear, Scale
from dpcnn.nn.losses import CrossEntropy
from dpcnn.nn.models import build
from dpcnn.nn.network import Network
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import GlobalAvgPool, MaxPool2d
from dpcnn.nn.sample_norm import LocalResponseNorm
from dpcnn.runs.checkpoint import read

SHAPE = (1009, 3)  # of no other test


def address(array):
    return array.__array_interface__["data"][0]


def test_an_array_takes_the_memory_of_an_earlier_one_to_which_nothing_refers():
    first = empty(SHAPE, np.float32)
    second = empty(SHAPE, np.float32)
    place = address(first)
    assert place != address(second)
    view = first[1:].T
    del first
    assert address(empty(SHAPE, np.float32)) != place, "a view of it is in use"
    third = empty(SHAPE, np.float32)
    del view
    assert address(empty(SHAPE, np.float32)) == place
    assert address(empty((1010, 3), np.float32)) == place, "arrays of about the same size share memory"
    assert len({address(second), address(third), place}) == 3


def test_memory_that_is_in_use_is_never_given_again():
    rng, kept = np.random.default_rng(0), {}
    for number in range(2000):
        array = empty((int(rng.integers(1, 300)),), np.int64)
        array[...] = number
        kept[number] = array[: rng.integers(1, len(array) + 1)]
        if len(kept) > 40:
            del kept[list(kept)[rng.integers(40)]]
        assert all((values == key).all() for key, values in kept.items())


def test_threads_share_no_memory():
    place, found = address(empty(SHAPE, np.float32)), []
    thread = threading.Thread(target=lambda: found.append(address(empty(SHAPE, np.float32))))
    thread.start()
    thread.join()
    assert found != [place]


def deep(blocks, norm=False, side=16, memory=256):
    """A network of so many 3x3 convolutions with 8 filters, each with a ReLU, for images of ``side`` x ``side``."""
    layers = [Scale()]
    for _ in range(blocks):
        layers += [Conv2d(8, 3, padding=1), *([BatchNorm()] if norm else []), ReLU()]
    return Network((side, side, 1), [*layers, Flatten(), Linear(10)], memory)


def peak(network, call, images=16):
    """The most new memory, in bytes, that ``call`` needs, in a thread without memory of earlier arrays."""
    found = []

    def measure():
        params, x = network.initialise(0), np.zeros((images, *network.input_shape), np.uint8)
        tracemalloc.start()
        call(params, x)
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("norm", [False, True])
def test_an_evaluation_needs_the_memory_of_some_layers_however_many_there_are(norm):
    few, many = (peak(deep(layers, norm), lambda p, x, n=layers: deep(n, norm).logits(p, x)) for layers in (4, 24))
    assert many < 1.5 * few


def test_a_gradient_keeps_less_than_all_outputs_and_their_gradients():
    network, grads = deep(24, True), np.empty(deep(24, True).size, np.float32)
    labels = np.zeros(16, np.int64)
    needed = peak(network, lambda p, x: network.gradient(p, x, labels, CrossEntropy(), grads))
    assert needed < 2 * 4 * 16 * network.activations


@pytest.mark.parametrize(
    ("side", "behind"),
    [
        (32, [LocalResponseNorm() for _ in range(8)]),
        (64, [ReLU(), LocalResponseNorm(), MaxPool2d(3, 2)]),
        (33, [Conv2d(16, 3, groups=16, dilation=16)]),
        (33, [Conv2d(16, 3, dilation=16)]),
        (13, [Conv2d(16, 2, dilation=12)]),
        (11, [Conv2d(16, 2, padding=3, dilation=6) for _ in range(4)]),
        (32, [Conv2d(16, 3, 2, 1, groups=4), ReLU()]),
        (64, [Conv2d(16, 1, 4, groups=4)]),
    ],
)
def test_a_gradient_needs_at_most_the_estimate(side, behind, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 1 << 16)
    layers = [Scale(), Conv2d(16, 1), *behind, GlobalAvgPool(), Linear(10)]
    network, labels = Network((side, side, 3), layers), np.zeros(16, np.int64)
    grads = np.empty(network.size, np.float32)
    needed = peak(network, lambda p, x: network.gradient(p, x, labels, CrossEntropy(), grads))
    assert needed < 1.1 * network.memory(16)


RESIDUAL = [{"kind": "relu", "name": "entry"}, {"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1}]
RESIDUAL += [{"kind": "batchnorm"}, {"kind": "add", "with": ["entry"]}, {"kind": "relu", "name": "end"}]
RESIDUAL += [{"kind": "conv2d", "filters": 16, "kernel_size": 1}, {"kind": "concat", "with": ["end"]}]


BEHIND = [
    [{"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1}, {"kind": "relu"}] * 4,
    [{"kind": "conv2d", "filters": 32, "kernel_size": 1}, {"kind": "batchnorm"}, {"kind": "relu"}] * 4,
    [{"kind": "conv2d", "filters": 16, "kernel_size": 5, "padding": 4, "dilation": 2}, {"kind": "relu"}] * 3,
    [{"kind": "conv2d", "filters": 16, "kernel_size": 9, "padding": 4}, {"kind": "relu"}] * 2,
    [{"kind": "conv2d", "filters": 64, "kernel_size": 5, "stride": 2}, {"kind": "gelu"}] * 2,
    [{"kind": "conv2d", "filters": 32, "kernel_size": 3, "stride": 2}, {"kind": "tanh"}] * 2,
    [{"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1, "groups": 16}, {"kind": "relu"}] * 4,
    [{"kind": "conv2d", "filters": 32, "kernel_size": 3, "groups": 2}, {"kind": "groupnorm", "groups": 4}] * 3,
    [{"kind": "maxpool2d", "kernel_size": 3, "stride": 1, "padding": 1}, {"kind": "relu"}] * 3,
    [
        {"kind": "conv2d", "filters": 32, "kernel_size": 3},
        {"kind": "relu"},
        {"kind": "maxpool2d", "kernel_size": 2},
    ],
    [{"kind": "batchnorm"}, {"kind": "relu"}, {"kind": "maxpool2d", "kernel_size": 2}, {"kind": "layernorm"}],
    [{"kind": "avgpool2d", "kernel_size": 2}, {"kind": "localresponsenorm"}, {"kind": "dropout", "p": 0.5}],
    RESIDUAL,
]
"""Layers behind a first convolution."""


def behind_a_convolution(layers, memory=256):
    """A network of a convolution with 16 filters, ``layers`` and a classifier, for colour images of 48 x 48."""
    first, last = {"kind": "conv2d", "filters": 16, "kernel_size": 3}, [{"kind": "globalavgpool"}, {"kind": "linear"}]
    return Network((48, 48, 3), build([{"kind": "scale"}, first, *layers, *last], 10), memory)


@pytest.mark.parametrize("behind", BEHIND)
def test_the_estimate_is_near_the_memory_of_a_gradient(behind, monkeypatch):
    """It was 0.5 to 2 times as large: it counted the outputs of layers in place, and what no layer keeps."""
    monkeypatch.setattr(arrays, "CHUNK", 1 << 16)
    network, labels = behind_a_convolution(behind), np.zeros(16, np.int64)
    grads, rng = np.empty(network.size, np.float32), SampleRng(0, 0, np.arange(16))
    needed = peak(network, lambda p, x: network.gradient(p, x, labels, CrossEntropy(), grads, rng)) + 2 * grads.nbytes
    assert 0.75 < network.memory(16) / needed < 1.4


@pytest.mark.parametrize("images", [4, 32])
@pytest.mark.parametrize("norm", [{"kind": "batchnorm"}, {"kind": "layernorm"}, {"kind": "groupnorm", "groups": 1}])
@pytest.mark.parametrize("end", [[], [{"kind": "relu"}]])
def test_the_estimate_counts_the_factors_of_a_normalisation_of_vectors(norm, end, images, monkeypatch):
    """Of images, they are a row of pixels; of vectors, each is as large as the batch: too little was estimated."""
    monkeypatch.setattr(arrays, "CHUNK", 1 << 16)
    first = {"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1}
    network = Network((48, 48, 3), build([first, {"kind": "flatten"}, norm, *end, {"kind": "linear"}], 10))
    labels, grads = np.zeros(images, np.int64), np.empty(network.size, np.float32)
    rng = SampleRng(0, 0, np.arange(images))
    needed = peak(network, lambda p, x: network.gradient(p, x, labels, CrossEntropy(), grads, rng), images)
    assert 0.8 < network.memory(images) / (needed + 2 * grads.nbytes) < 1.4


@pytest.mark.parametrize("behind", BEHIND)
def test_an_evaluation_needs_about_its_limit(behind, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 1 << 16)
    network = behind_a_convolution(behind, memory=16)
    needed = peak(network, lambda p, x: network.logits(p, x[: network.at_once]), images=128)
    assert network.at_once < 128 and 0.3 < needed / 16e6 < 1.6


def test_an_evaluation_holds_nothing_that_a_layer_keeps_for_its_gradient_while_the_next_one_computes(monkeypatch):
    """Two large convolutions in a row had both their transformed images in memory, also without a gradient."""
    monkeypatch.setattr(arrays, "CHUNK", 1 << 16)
    conv = {"kind": "conv2d", "filters": 16, "kernel_size": 9, "padding": 4}
    one, two = (behind_a_convolution([conv] * count) for count in (1, 2))
    needed = [peak(network, network.logits, images=8) for network in (one, two)]
    assert needed[1] < 1.2 * needed[0]


def test_a_smaller_limit_evaluates_fewer_images_at_once():
    at_once = [deep(2, side=224, memory=memory).at_once for memory in (1, 16, 64, 1024, 4096)]
    assert at_once == sorted(at_once) and at_once[0] == 1 and at_once[-1] == 128 and len(set(at_once)) > 3
    assert all(number & (number - 1) == 0 for number in at_once)


def test_the_limit_of_an_evaluation_affects_no_weight_and_no_number_of_right_answers(quick, tmp_path):
    for memory, ranks in ((256, 1), (1, 1), (1, 3)):
        out = tmp_path / f"{memory}-{ranks}"
        assert training(*quick, "--memory", str(memory), "--out", out, ranks=ranks).status == 0
    last = [read(tmp_path / name / "checkpoints" / "last.h5") for name in ("256-1", "1-1", "1-3")]
    assert len({each.weights_sha256 for each in last}) == 1
    accuracies = [[e["validation_accuracy"] for e in each.progress.events if e["event"] == "epoch"] for each in last]
    losses = [[e["validation_loss"] for e in each.progress.events if e["event"] == "epoch"] for each in last]
    assert accuracies[0] == accuracies[1] == accuracies[2]
    assert losses[1] == losses[2] and np.allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_evaluation_that_fails_does_not_lose_the_epoch(quick, tmp_path, monkeypatch, ranks):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert training(*quick, "--out", whole, ranks=ranks).status == 0

    def fail(*_):
        raise DivergenceError("the evaluation fails")

    with monkeypatch.context() as patch:
        patch.setattr("dpcnn.training.trainer.evaluate_sets", fail)
        assert training(*quick, "--out", cut, ranks=ranks).status != 0
    assert read(cut / "checkpoints" / "last.h5").progress.step == 7, "the end of the first epoch"
    assert training("--resume", "--out", cut, ranks=ranks).status == 0
    ends = [read(folder / "checkpoints" / "last.h5") for folder in (whole, cut)]
    assert ends[0].weights_sha256 == ends[1].weights_sha256
    assert ends[0].progress.epochs == ends[1].progress.epochs == 2
