"""Exported nets give the same answers elsewhere."""

import importlib.util
import io
import json

import numpy as np
import pytest
from conftest import ROOT, run

from dpcnn.checkpoint import Checkpoint, read
from dpcnn.config import Config, from_dict, read_recipe
from dpcnn.data.samples import find_data, load
from dpcnn.export import as_npz, as_onnx, as_safetensors, like_torch
from dpcnn.metrics import Cursor
from dpcnn.nn.layers import Dropout, Scale
from dpcnn.nn.models import KINDS
from dpcnn.parallel.comm import Alone

needs_export = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "safetensors"))), reason="extras not installed"
)
RECIPES = ["simple-cnn", "fast", "book-cnn-adam", "lenet5", "mlp-sgd"]


def images(count):
    samples = load(find_data(str(ROOT / "data" / "mnist")), "test", Alone())
    return samples.take(np.arange(count))[0]


def fresh(recipe):
    """A checkpoint of a recipe's first weights, its biases random, and its network's logits."""
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe)
    network = config.network((28, 28, 1), 10)
    vector = network.initialise(1)
    parameters = network.views(vector)
    for name, view in parameters.items():
        if name.endswith(".b"):
            view[...] = np.random.default_rng(len(view)).standard_normal(view.shape)
    checkpoint = Checkpoint(parameters, {}, Cursor(), config, (28, 28, 1), 10, "", "", {})
    return checkpoint, lambda x: network.logits(vector, x).copy()


def onnx_logits(model, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": x.astype(np.float32)})
    return logits


@needs_export
@pytest.mark.parametrize("recipe", RECIPES)
def test_onnxruntime_computes_the_same_logits(recipe):
    checkpoint, logits = fresh(recipe)
    x = images(130)
    expected = logits(x)
    np.testing.assert_allclose(
        onnx_logits(as_onnx(checkpoint), x), expected, rtol=1e-4, atol=1e-4 * abs(expected).max()
    )


@needs_export
def test_onnxruntime_knows_every_kind_of_layer():
    kinds = {"maxpool2d": {"window": 2}, "avgpool2d": {"window": 3, "stride": 2}, "dropout": {"part": 0.4}}
    middle = [kind for kind in KINDS if kind not in ("scale", "conv2d", "flatten", "linear")]
    layers = [
        {"kind": "scale", "low": -1.0, "span": 2.0},
        {"kind": "conv2d", "filters": 6, "kernel": [5, 3], "stride": 1, "padding": 2, "bias": True},
        *({"kind": kind, **kinds.get(kind, {})} for kind in middle),
        {"kind": "flatten"},
        {"kind": "linear", "features": 10},
    ]
    checkpoint, logits = fresh(Config(model="all", layers=layers))
    x = images(20)
    np.testing.assert_allclose(onnx_logits(as_onnx(checkpoint), x), logits(x), rtol=1e-4, atol=1e-4)


@needs_export
@pytest.mark.parametrize("recipe", RECIPES)
def test_safetensors_have_pytorch_s_layout(recipe):
    from safetensors.numpy import load as load_tensors

    checkpoint, _ = fresh(recipe)
    found = load_tensors(as_safetensors(checkpoint))
    assert {name: array.shape for name, array in found.items()} == {
        name: array.shape for name, array in like_torch(checkpoint).items()
    }
    for name, array in checkpoint.parameters.items():
        layer, _, kind = name.rpartition(".")
        other = found[f"{layer}.{'weight' if kind == 'w' else 'bias'}"]
        assert other.size == array.size and other.shape[0] == array.shape[-1]
        np.testing.assert_array_equal(np.sort(other, axis=None), np.sort(array, axis=None))


@pytest.mark.parametrize("recipe", ["simple-cnn", "fast"])
def test_pytorch_computes_the_same_logits(recipe):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from dpcnn.peers.torch_ddp import translate

    checkpoint, logits = fresh(recipe)
    network = checkpoint.config.network((28, 28, 1), 10)
    (scale,) = (layer for layer in network.layers if isinstance(layer, Scale))
    net = torch.nn.Sequential(*(translate(layer) for layer in network.layers if not isinstance(layer, Scale | Dropout)))
    with torch.no_grad():
        for parameter, array in zip(net.parameters(), like_torch(checkpoint).values(), strict=True):
            parameter.copy_(torch.from_numpy(array.copy()))
        x = images(50)
        found = net(torch.from_numpy(x).permute(0, 3, 1, 2).float() * (scale.span / 255) + scale.low).numpy()
    expected = logits(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_npz_holds_all_without_pickle():
    checkpoint, _ = fresh("lenet5")
    with np.load(io.BytesIO(as_npz(checkpoint)), allow_pickle=False) as file:
        for name, array in checkpoint.parameters.items():
            np.testing.assert_array_equal(file[name], array)
        assert from_dict(json.loads(str(file["config"]))) == checkpoint.config


@needs_export
@pytest.mark.slow
def test_the_whole_test_set_has_the_same_answers(mlp_checkpoint, tmp_path):
    """The command on a trained net; a second export writes nothing over."""
    result = run(2, "-m", "dpcnn.export", mlp_checkpoint, "--out", tmp_path / "net.onnx")
    assert result.status == 0 and result.out.startswith(f"{tmp_path / 'net.onnx'}: mlp-50 of step 500, "), result.err
    content = (tmp_path / "net.onnx").read_bytes()
    checkpoint = read(mlp_checkpoint)
    network = checkpoint.config.network(checkpoint.image_shape, checkpoint.classes)
    x = images(10_000)
    ours = network.logits(network.flat(checkpoint.parameters), x).argmax(axis=1)
    np.testing.assert_array_equal(onnx_logits(content, x).argmax(axis=1), ours)
    result = run(0, "-m", "dpcnn.export", mlp_checkpoint, "--out", tmp_path / "net.onnx")
    assert result.status == 2 and "net.onnx: exists; give another --out" in result.errors[0]
    assert (tmp_path / "net.onnx").read_bytes() == content
