"""Networks: the layout of the flat vector, first values, gradients of the whole."""

import contextlib
import io

import numpy as np
import pytest
from commands import training

from dpcnn.cli import run
from dpcnn.config import Config
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn import network as module
from dpcnn.nn.layers import Scale
from dpcnn.nn.losses import CrossEntropy
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm

RNG = np.random.default_rng(5)


def batch(n: int, shape=(12, 12, 1)):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8), RNG.integers(0, 10, n)


@pytest.fixture
def network():
    return Network((12, 12, 1), build(MODELS["simple-cnn"], 10))


def test_simple_cnn_has_the_published_layout():
    network = Network((28, 28, 1), build(MODELS["simple-cnn"], 10))
    assert [(p.name, p.shape) for p in network.parameters] == [
        ("conv2d1.w", (3, 3, 1, 16)),
        ("conv2d2.w", (3, 3, 16, 32)),
        ("conv2d3.w", (3, 3, 32, 64)),
        ("linear1.w", (3136, 512)),
        ("linear2.w", (512, 10)),
    ]
    assert network.size == 1_633_936


def test_small_cnn_is_small():
    assert Network((28, 28, 1), build(MODELS["small-cnn"], 10)).size == 46_994


def test_views_share_the_vector_s_memory(network):
    vector = np.zeros(network.size, np.float32)
    views = network.views(vector)
    for number, view in enumerate(views.values()):
        view[...] = number + 1
    sizes = [view.size for view in views.values()]
    np.testing.assert_array_equal(vector, np.repeat(np.arange(1, len(sizes) + 1), sizes))


def test_first_values_are_he_s_and_depend_on_the_seed_alone():
    network = Network((28, 28, 1), build(MODELS["simple-cnn"], 10))
    vector = network.initialise(3)
    assert vector.dtype == np.float32
    np.testing.assert_array_equal(vector, Network((28, 28, 1), build(MODELS["simple-cnn"], 10)).initialise(3))
    assert not np.array_equal(vector, network.initialise(4))
    for parameter, values in zip(network.parameters, network.views(vector).values(), strict=True):
        spread = np.sqrt(2 / parameter.fan_in)
        assert abs(values.std() / spread - 1) < 5 / np.sqrt(2 * values.size)
        assert abs(values.mean()) < 5 * spread / np.sqrt(values.size)


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_gradient_by_finite_differences_in_float64(model):
    layers = build(MODELS[model], 10)
    for layer in layers:
        if isinstance(layer, Scale):
            layer.dtype = np.dtype(np.float64)
    network = Network((12, 12, 1), layers)
    vector = network.initialise(1).astype(np.float64)
    images, labels = batch(6)
    gradient = np.full(network.size, np.nan)
    network.gradient(vector, images, labels, CrossEntropy(), gradient)
    for _ in range(3):
        direction = RNG.standard_normal(network.size) / 10
        spare = np.empty_like(gradient)
        up, _ = network.gradient(vector + 1e-6 * direction, images, labels, CrossEntropy(), spare)
        down, _ = network.gradient(vector - 1e-6 * direction, images, labels, CrossEntropy(), spare)
        assert gradient @ direction == pytest.approx((up - down) / 2e-6, rel=1e-5)


def test_gradients_are_sums_over_samples(network):
    vector = network.initialise(0)
    images, labels = batch(20)
    whole, part, total = (np.zeros(network.size, np.float32) for _ in range(3))
    loss, correct = network.gradient(vector, images, labels, CrossEntropy(), whole)
    sums = [0.0, 0]
    for cut in (slice(0, 7), slice(7, 20)):
        part_loss, part_correct = network.gradient(vector, images[cut], labels[cut], CrossEntropy(), part)
        total += part
        sums = [sums[0] + part_loss, sums[1] + part_correct]
    np.testing.assert_allclose(total, whole, rtol=1e-3, atol=1e-4)
    assert sums[0] == pytest.approx(loss, rel=1e-5) and sums[1] == correct


def test_a_microbatch_has_the_same_bits_after_any_other(network):
    vector = network.initialise(0)
    images, labels = batch(16)
    first, again, other = (np.empty(network.size, np.float32) for _ in range(3))
    network.gradient(vector, images, labels, CrossEntropy(), first)
    network.gradient(vector, *batch(37), CrossEntropy(), other)
    network.logits(vector, batch(100)[0])
    network.gradient(vector, images, labels, CrossEntropy(), again)
    np.testing.assert_array_equal(first.view(np.uint32), again.view(np.uint32))


def test_first_not_finite_names_the_layer(network):
    vector = network.initialise(0)
    images, _ = batch(2)
    assert network.first_not_finite(vector, images) is None
    network.views(vector)["conv2d2.w"][0, 0, 0, 0] = np.nan
    assert network.first_not_finite(vector, images) == "conv2d2 (its parameter w)"
    vector = network.initialise(0)
    for name in ("conv2d1.w", "conv2d2.w"):
        network.views(vector)[name][...] = 1e20
    with np.errstate(all="ignore"):
        assert network.first_not_finite(vector, images) == "conv2d2 (its output)"


def test_flat_refuses_another_model(network):
    parameters = dict(network.views(network.initialise(2)))
    np.testing.assert_array_equal(network.flat(parameters), network.initialise(2))
    parameters["linear2.w"] = parameters["linear2.w"][:, :9]
    with pytest.raises(
        CheckpointError, match=r"another model: linear2\.w is \(512, 9\) in the checkpoint and \(512, 10\) in the model"
    ):
        network.flat(parameters)


def test_a_network_that_does_not_fit_into_memory_is_refused(monkeypatch):
    network = Config(model="mlp").network((28, 28, 1), 10)
    network.check_memory(1000, 4)
    monkeypatch.setattr(module, "memory_left", lambda: 10_000_000)
    network.check_memory(1, 2)
    with pytest.raises(ConfigError, match="for 1000 images at once on each of 4 processes, but only 0.0 GB are free"):
        network.check_memory(1000, 4)
    monkeypatch.setattr(module, "memory_left", lambda: network.memory(1) + 12 * network.size)
    network.check_memory(1, vectors=3)
    with pytest.raises(ConfigError, match="for 1 images at once on each of 1 processes"):
        network.check_memory(1, vectors=4)


def test_a_training_that_needs_too_much_memory_is_told_of_the_microbatch(monkeypatch, quick, tmp_path):
    monkeypatch.setattr(module, "memory_left", lambda: 1_000_000)
    result = training(*quick, "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and len(result.errors) == 1
    assert "free here; give a smaller --microbatch, which affects the bits, or start fewer ranks" in result.errors[0]
    assert not (tmp_path / "run").exists()


def test_memory_that_runs_out_ends_with_one_line():
    def fail(comm):
        raise MemoryError

    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        assert run(fail, SerialComm()) == 2
    (line,) = err.getvalue().splitlines()
    assert line.startswith("dpcnn: error: rank 0: no memory left; ") and line.endswith("with a smaller --microbatch")
