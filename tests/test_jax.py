"""The comparison with JAX, where it is installed: its networks and trainings are those of dpcnn."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import MNIST, environment, run
from test_versus import RATES, TRAININGS

from dpcnn.base.rng import SampleRng
from dpcnn.config import Config
from dpcnn.data.dataset import load
from dpcnn.errors import ConfigError
from dpcnn.evidence.measure import warm_up
from dpcnn.evidence.versus import COMPARED_STEP
from dpcnn.nn.losses import LOSSES, CrossEntropy
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

jax = pytest.importorskip("jax", reason="JAX is not installed")

ACTIVATIONS = ["relu", "leakyrelu", "gelu", "silu", "sigmoid", "tanh"]
NETWORKS = 8


def random_layers(rng: np.random.Generator) -> list[dict]:
    """The layers of a small network: convolutions and pooling of all kinds, a branch that is added or concatenated."""

    def some(*values):
        return values[rng.integers(len(values))]

    def conv2d(channels: int, **more) -> list[dict]:
        groups = some(1, 1, 2, 4)
        sides = {"kernel_size": some(1, 3, [3, 2], 5), "padding": some(0, 1, 2), "dilation": some(1, 1, 2)}
        conv = {"kind": "conv2d", "filters": channels, "groups": groups, "bias": bool(rng.integers(2)), **sides, **more}
        norm = [{"kind": "batchnorm", "momentum": some(0.1, 0.3)}] if rng.integers(2) else []
        return [conv, *norm, {"kind": some(*ACTIVATIONS)}]

    same = {"kernel_size": 3, "padding": 1, "dilation": 1}
    pool = {"kernel_size": some(2, 3), "stride": some(1, 2), "padding": some(0, 1)}
    first = {"kind": "scale", "low": -1.0, "span": 2.0}
    start = conv2d(8, groups=1, stride=some(1, 2), padding=2)
    start[-1]["name"] = "before"
    end = [{"kind": "globalavgpool"}] if rng.integers(2) else [{"kind": "flatten"}]
    return [
        some(first, {"kind": "normalise", "mean": [99.0, 120.0, 140.0], "deviation": [60.0, 70.0, 80.0]}),
        *start,
        {"kind": some("maxpool2d", "avgpool2d"), **pool, "name": "pooled"},
        *conv2d(8, **same),
        {"kind": some("add", "concat"), "with": ["pooled"]},
        {"kind": some(*ACTIVATIONS)},
        *conv2d(12, padding=2),
        *end,
        {"kind": "linear", "features": 10, "bias": True},
        {"kind": "batchnorm"},
        {"kind": some(*ACTIVATIONS)},
        {"kind": "linear", "bias": True},
    ]


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_random_networks_have_the_same_loss_gradient_and_running_means(seed):
    """Both compute in float64 here, with the code of float32: so rounding hides no difference, however small."""
    from dpcnn.evidence.peers.jax_step import JaxStep

    rng, layout, shape = np.random.default_rng(seed), ("NHWC", "NCHW")[seed % 2], (14, 13, 3)
    config = Config(model="random", layers=random_layers(rng), parts={"label_smoothing": 0.1})
    network = config.network(shape, 5)
    network.layers[0].dtype = np.dtype(np.float64)
    network.layers[0].build(shape)
    images, labels = rng.integers(0, 256, (8, *shape), np.uint8), rng.integers(0, 5, 8)
    params = network.initialise(seed) + rng.uniform(0, 0.01, network.size)  # no bias is zero
    gradient = np.empty_like(params)
    total, _ = network.gradient(params, images, labels, config.make_loss(), gradient, SampleRng(0, 0, np.arange(8)))
    ours = network.views(gradient / 8)
    named = network.views(params)
    pixels = images.astype(np.float64).transpose(["NHWC".index(axis) for axis in layout])
    with jax.enable_x64(True):
        step = JaxStep(config, network, 0, layout)
        (loss, after), grads = jax.jit(step.gradient)(named, pixels, labels, jax.random.key(0))
    assert float(loss) == pytest.approx(total / 8, rel=1e-12)
    largest = max(np.abs(g).max() for g in ours.values())
    for p in network.parameters:
        if p.momentum:
            expected = named[p.name] + p.momentum * (ours[p.name] - named[p.name])
            np.testing.assert_allclose(after[p.name], expected, rtol=1e-10, atol=1e-10, err_msg=p.name)
        else:
            np.testing.assert_allclose(grads[p.name], ours[p.name], rtol=1e-8, atol=1e-9 * largest, err_msg=p.name)


def test_the_random_networks_have_every_layer_but_dropout():
    from dpcnn.evidence.peers.jax_net import TWINS

    networks = [random_layers(np.random.default_rng(seed)) for seed in range(NETWORKS)]
    assert {layer["kind"] for layers in networks for layer in layers} == {kind.__name__.lower() for kind in TWINS} - {
        "dropout"
    }


@pytest.mark.parametrize("name", [name for name in TRAININGS if name not in ("resnet20", "grouped")])
def test_both_trainings_have_the_same_loss_after_three_steps(tmp_path, name):
    """As the test of PyTorch, which explains the bounds."""
    same_losses(tmp_path, without_response_norms(TRAININGS[name]), RATES.get(name, 0.01))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "grouped"])
def test_deep_trainings_have_the_same_loss_after_three_steps(tmp_path, name):
    same_losses(tmp_path, without_response_norms(TRAININGS[name]), RATES.get(name, 0.01))


def without_response_norms(config: Config) -> Config:
    """The same without the layers that JAX's side lacks."""
    return replace(config, layers=[layer for layer in config.layers if layer["kind"] != "localresponsenorm"])


def same_losses(folder, config: Config, lr: float) -> None:
    from dpcnn.evidence.peers.jax_training import JaxTraining

    config = replace(config, data=str(MNIST), batch=64, microbatch=64, warmup=0, lr=lr)
    samples = load(MNIST, "train", SerialComm())
    network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    ours = warm_up(Trainer(SerialComm(), config, network, samples, RunFolder(folder), Reporter()))
    training, untrained = JaxTraining(config, samples, "NHWC"), JaxTraining(config, samples, "NHWC")
    theirs = [float(training.step(number, training.batch(number))) for number in range(COMPARED_STEP + 1)]
    gain = float(untrained.step(COMPARED_STEP, untrained.batch(COMPARED_STEP))) - theirs[-1]
    assert abs(gain) > 0.01 * theirs[-1]
    assert ours[0] == pytest.approx(theirs[0], rel=1.6e-5)
    assert ours[COMPARED_STEP] == pytest.approx(theirs[-1], abs=1e-3 * abs(gain))


def test_dropout_keeps_the_mean_and_the_share():
    from dpcnn.evidence.peers.jax_layers import Call
    from dpcnn.evidence.peers.jax_net import twin
    from dpcnn.nn.layers import Dropout

    y = np.array(twin(Dropout(0.25))(Dropout(0.25), Call({}, "NHWC", jax.random.key(1)), np.ones((200, 200))))
    assert set(np.unique(y).tolist()) == {0.0, np.float32(4 / 3)}
    assert np.mean(y == 0) == pytest.approx(0.25, abs=0.01)  # five times the deviation of a mean of 40,000


@pytest.mark.parametrize("threads", [1, 3])
def test_xla_has_as_many_threads_as_asked_for(threads):
    code = f"from dpcnn.evidence.peers.jax_run import start_threads; start_threads({threads})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    wrong = f"import jax; jax.devices(); {code.replace(str(threads), str(os.cpu_count() + 1))}"
    done = subprocess.run([sys.executable, "-c", wrong], capture_output=True, text=True, env=environment())
    assert "LaunchError: XLA has started" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [{"kind": "flatten"}, {"kind": "layernorm"}, {"kind": "linear"}]}, "no JAX layer for LayerNorm"),
        ({"loss": "odd"}, "no JAX loss for odd; add one"),
        ({"optimizer": "lars"}, "no JAX optimizer for lars; add one"),
    ],
)
def test_what_jax_lacks_is_an_error(changes, message, monkeypatch):
    from dpcnn.evidence.peers.jax_training import JaxTraining

    monkeypatch.setitem(LOSSES, "odd", type("Odd", (CrossEntropy,), {}))
    samples = load(MNIST, "train", SerialComm())
    with pytest.raises(ConfigError, match=message):
        JaxTraining(Config(model="mlp", data=str(MNIST), **changes), samples, "NHWC")


def test_what_jax_lacks_ends_the_comparison_with_one_line(small):
    result = run(0, "-m", "dpcnn.bench", "--versus", "jax", "--model", "mlp", "--optimizer", "lars", "--data", small)
    assert result.status == 2 and len(result.errors) == 1 and "no JAX optimizer for lars" in result.errors[0], (
        result.err
    )


def test_jobs_in_turns(small, tmp_path):
    """dpcnn on 2 ranks, and JAX with 2 threads, see the same losses."""
    words = ["--versus", "jax", "--batches", "8", "--rounds", "1", "--steps", "2", "--json", tmp_path / "v.json"]
    result = run(0, "-m", "dpcnn.bench", *words, "--model", "mlp", "--data", small, "--validation", "0", limit=180)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "v.json").read_text())
    assert found["machine"]["jax"] == jax.__version__ and set(found["rounds"]["8"][0]) == {
        *("dpcnn", "NHWC", "NCHW", "limit")
    }
    assert found["losses"]["8"]["dpcnn"] == pytest.approx(found["losses"]["8"]["NHWC"], rel=1e-4)
    assert "against JAX in one process" in result.out and "warning" not in result.out
