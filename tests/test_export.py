"""Exported nets give the same answers elsewhere."""

import importlib.util
import io
import json

import numpy as np
import pytest
from commands import command, training
from conftest import ROOT

import dpcnn
from dpcnn.config import Config, from_dict
from dpcnn.data.classes import numbered
from dpcnn.data.dataset import find_data, load
from dpcnn.errors import ConfigError
from dpcnn.interop.metadata import Description
from dpcnn.interop.npz import as_npz
from dpcnn.interop.onnx import OPERATORS, as_onnx
from dpcnn.interop.safetensors import as_safetensors, from_safetensors, like_torch
from dpcnn.interop.torch_layout import THEIR_NAMES
from dpcnn.nn.losses import softmax
from dpcnn.nn.models import KINDS
from dpcnn.nn.pooling import MaxPool2d
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.progress import Progress

needs_export = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "safetensors"))), reason="extras not installed"
)
RECIPES = ["simple-cnn", "fast", "book-cnn-adam", "lenet5", "mlp-sgd", "accurate"]


def images(count):
    samples = load(find_data(str(ROOT / "data" / "mnist")), "test", SerialComm())
    return samples.take(np.arange(count))[0]


def fresh(recipe):
    """A checkpoint of a recipe's first weights, its biases random, and its network's logits."""
    config = recipe if isinstance(recipe, Config) else read_recipe(recipe)
    network = config.network((28, 28, 1), 10)
    vector = network.initialise(1)
    parameters = network.views(vector)
    for name, view in parameters.items():
        if name.endswith((".b", ".mean")):
            view[...] = np.random.default_rng(len(view)).standard_normal(view.shape)
        if "norm" in name and name.endswith((".w", ".variance")):
            view[...] = np.random.default_rng(len(view)).uniform(0.5, 2, view.shape)
    checkpoint = Checkpoint(parameters, {}, Progress(), config, (28, 28, 1), numbered(10), "mnist", "", "", {})
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


OPTIONS = {
    "maxpool2d": {"kernel_size": 3, "stride": 2, "padding": 1},
    "avgpool2d": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dropout": {"p": 0.4},
    "groupnorm": {"groups": 3},
    "add": {"with": ["concat1"]},
    "concat": {"with": ["relu1"]},
}
LAST = ("scale", "normalise", "conv2d", "flatten", "linear", "globalavgpool", "concat", "groupnorm", "add")
EVERY_KIND = [
    {"kind": "scale", "low": -1.0, "span": 2.0},
    {"kind": "normalise", "mean": [-0.7], "deviation": [0.5]},
    {"kind": "conv2d", "filters": 6, "kernel_size": [5, 3], "stride": 1, "padding": 2, "bias": True},
    {"kind": "conv2d", "filters": 6, "kernel_size": 3, "padding": 2, "groups": 6, "dilation": 2},
    {"kind": "conv2d", "filters": 12, "kernel_size": 3, "padding": 1, "groups": 3},
    *({"kind": kind, **OPTIONS.get(kind, {})} for kind in KINDS if kind not in LAST),
    *({"kind": kind, **OPTIONS.get(kind, {})} for kind in ("concat", "groupnorm", "add")),
    {"kind": "flatten"},
    {"kind": "linear", "features": 12},
    {"kind": "layernorm"},
    {"kind": "groupnorm", "groups": 4, "name": "vectors"},
    {"kind": "globalavgpool", "input": "add1"},
    {"kind": "linear", "features": 12},
    {"kind": "add", "with": ["vectors"]},
    {"kind": "linear", "features": 10},
]
"""A network of every kind of layer."""


@needs_export
def test_onnxruntime_knows_every_kind_of_layer():
    checkpoint, logits = fresh(Config(model="all", layers=EVERY_KIND))
    x = images(20)
    np.testing.assert_allclose(onnx_logits(as_onnx(checkpoint), x), logits(x), rtol=1e-4, atol=1e-4)


@needs_export
def test_a_layer_that_onnx_export_does_not_know_is_refused(monkeypatch):
    monkeypatch.delitem(OPERATORS, MaxPool2d)
    with pytest.raises(
        ConfigError,
        match=r"^no ONNX export for maxpool2d1: use --format npz, or add the entry .*OPERATORS\[MaxPool2d\]$",
    ):
        as_onnx(fresh("book-cnn-adam")[0])


@needs_export
@pytest.mark.parametrize("recipe", RECIPES)
def test_safetensors_have_pytorch_s_layout(recipe):
    from safetensors.numpy import load as load_tensors

    checkpoint, _ = fresh(recipe)
    file = as_safetensors(checkpoint)
    assert as_safetensors(checkpoint) == file, "the same bytes"
    found = load_tensors(file)
    assert {name: array.shape for name, array in found.items()} == {
        name: array.shape for name, array in like_torch(checkpoint).items()
    }
    for name, array in checkpoint.parameters.items():
        layer, _, kind = name.rpartition(".")
        other = found[f"{layer}.{THEIR_NAMES[kind]}"]
        assert other.size == array.size and other.shape[0] == array.shape[-1]
        np.testing.assert_array_equal(np.sort(other, axis=None), np.sort(array, axis=None))


@pytest.mark.parametrize("recipe", RECIPES)
def test_pytorch_computes_the_same_logits(recipe):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from dpcnn.evidence.peers.torch_net import torch_net

    checkpoint, logits = fresh(recipe)
    network, x = checkpoint.network(), images(50)
    net = torch_net(network, network.flat(checkpoint.parameters)).eval()
    with torch.no_grad():
        found = net(torch.from_numpy(x).permute(0, 3, 1, 2).float()).numpy()
    expected = logits(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_pytorch_computes_the_same_logits_for_every_kind_of_layer():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from dpcnn.evidence.peers.torch_net import TWINS, torch_net

    checkpoint, logits = fresh(Config(model="all", layers=EVERY_KIND))
    network, x = checkpoint.network(), images(50)
    assert set(map(type, network.layers)) == set(TWINS)
    net = torch_net(network, network.flat(checkpoint.parameters)).eval()
    with torch.no_grad():
        found = net(torch.from_numpy(x).permute(0, 3, 1, 2).float()).numpy()
    expected = logits(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())


def test_npz_holds_all_without_pickle():
    checkpoint, _ = fresh("lenet5")
    with np.load(io.BytesIO(as_npz(checkpoint)), allow_pickle=False) as file:
        for name, array in checkpoint.parameters.items():
            np.testing.assert_array_equal(file[name], array)
        assert from_dict(json.loads(str(file["dpcnn"]))["config"]) == checkpoint.config


def test_the_format_is_that_of_the_file_name(mlp_checkpoint, tmp_path):
    result = command("export", mlp_checkpoint, "--out", tmp_path / "net.npz")
    assert result.status == 0 and np.load(tmp_path / "net.npz").files, result.err
    result = command("export", mlp_checkpoint, "--format", "onnx", "--out", tmp_path / "other.npz")
    assert result.status == 2 and "other.npz has the ending of npz, but --format is onnx; drop one" in result.errors[0]
    assert not (tmp_path / "other.npz").exists()
    result = command("export", mlp_checkpoint, "--out", tmp_path / "net.pt")
    assert result.status == 2 and "net.pt does not end in .npz, .onnx, .safetensors; rename it" in result.errors[0]
    assert not (tmp_path / "net.pt").exists()
    result = command("export", mlp_checkpoint, "--format", "npz", "--out", tmp_path / "net.v2")
    assert result.status == 0 and np.load(tmp_path / "net.v2").files, result.err


@needs_export
@pytest.mark.slow
def test_the_whole_test_set_has_the_same_answers(mlp_checkpoint, tmp_path):
    """The command on a trained net; a second export writes nothing over."""
    result = command("export", mlp_checkpoint, "--out", tmp_path / "net.onnx")
    assert result.status == 0 and result.out.startswith(f"{tmp_path / 'net.onnx'}: mlp-50 of step 500, "), result.err
    content = (tmp_path / "net.onnx").read_bytes()
    checkpoint = read(mlp_checkpoint)
    network = checkpoint.config.network(checkpoint.image_shape, checkpoint.classes)
    x = images(10_000)
    ours = network.logits(network.flat(checkpoint.parameters), x).argmax(axis=1)
    np.testing.assert_array_equal(onnx_logits(content, x).argmax(axis=1), ours)
    result = command("export", mlp_checkpoint, "--out", tmp_path / "net.onnx")
    assert result.status == 2 and "net.onnx: exists; give another --out" in result.errors[0]
    assert (tmp_path / "net.onnx").read_bytes() == content


@needs_export
@pytest.mark.parametrize(("dtype", "white"), [("uint16", 65535), ("uint16", 4095), ("float32", 1), ("uint8", 255)])
def test_an_exported_network_takes_the_values_of_the_training(dtype, white, tmp_path):
    """A data set of other values than uint8: from its training to ONNX, and back from safetensors."""
    import onnx

    rng = np.random.default_rng(7)
    x = rng.uniform(0, white, (60, 9, 9)).astype(dtype)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(60) % 3, x_test=x, y_test=np.arange(60) % 3)
    words = ["--out", tmp_path / "set", *(["--max-value", str(white)] if dtype != "uint8" else [])]
    assert command("data", "prepare", tmp_path / "a.npz", *words).status == 0
    words = [
        "--model",
        "mlp",
        "--data",
        tmp_path / "set",
        "--max-steps",
        "3",
        "--warmup",
        "0",
        "--out",
        tmp_path / "run",
    ]
    assert training(*words).status == 0
    for form in ("onnx", "safetensors"):
        result = command("export", tmp_path / "run", "--format", form, "--out", tmp_path / f"net.{form}")
        assert result.status == 0 and f", for images of 0 to {white}, " in result.out, result.err
    assert command("import", tmp_path / "net.safetensors", "--out", tmp_path / "net.h5").status == 0
    logits = onnx_logits((tmp_path / "net.onnx").read_bytes(), x[..., None])
    expected = dpcnn.load(tmp_path / "run").predict_proba(tmp_path / "set")
    np.testing.assert_allclose(softmax(logits.astype(np.float64)), expected, rtol=1e-4)
    assert np.ptp(expected, axis=0).min() > 1e-3  # it depends on the images
    np.savez(tmp_path / "x.npz", x=x)
    for source in ("run", "net.h5"):
        printed = command("predict", tmp_path / source, tmp_path / "x.npz", "--json")
        assert printed.status == 0, printed.err
        found = [[*json.loads(line)["probabilities"].values()] for line in printed.out.splitlines()]
        np.testing.assert_array_equal(found, expected)
    (given,) = onnx.load(tmp_path / "net.onnx").graph.input
    assert given.doc_string == f"(N, H, W, C), from 0 for black to {white} for white"


@needs_export
@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_brought_in_is_what_was_taken_out(recipe, tmp_path):
    checkpoint, logits = fresh(recipe)
    path = tmp_path / "net.safetensors"
    path.write_bytes(as_safetensors(checkpoint))
    found = from_safetensors(path)
    assert (found.config, found.image_shape, found.classes) == (checkpoint.config, (28, 28, 1), 10)
    assert list(found.parameters) == list(checkpoint.parameters)
    for name, array in checkpoint.parameters.items():
        np.testing.assert_array_equal(found.parameters[name], array)
    network, x = found.network(), images(20)
    np.testing.assert_array_equal(network.logits(network.flat(found.parameters), x), logits(x))


def test_a_pytorch_model_s_tensors_are_brought_in(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    save_file = pytest.importorskip("safetensors.torch").save_file
    parts = {
        "conv2d1": torch.nn.Conv2d(1, 4, 3, bias=False),
        "batchnorm1": torch.nn.BatchNorm2d(4),
        "linear1": torch.nn.Linear(4 * 26 * 26, 10),
    }
    for _ in range(3):  # running statistics of their own
        parts["batchnorm1"](parts["conv2d1"](torch.rand(8, 1, 28, 28)))
    tensors = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    save_file(tensors, tmp_path / "net.safetensors")
    layers = [
        {"kind": "scale"}, {"kind": "conv2d", "filters": 4, "kernel_size": 3}, {"kind": "batchnorm"},
        {"kind": "flatten"}, {"kind": "linear", "bias": True},
    ]  # fmt: skip
    description = Description(Config(model="theirs", layers=layers), (28, 28, 1), numbered(10), "crop", step=0)
    found = from_safetensors(tmp_path / "net.safetensors", description)
    network, x = found.network(), images(20)
    net = torch.nn.Sequential(parts["conv2d1"], parts["batchnorm1"], torch.nn.Flatten(), parts["linear1"]).eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255).numpy()
    np.testing.assert_allclose(network.logits(network.flat(found.parameters), x), expected, rtol=1e-4, atol=1e-5)


@needs_export
def test_the_value_of_white_is_given_for_a_file_that_does_not_tell_it(tmp_path):
    from safetensors.numpy import save

    checkpoint, logits = fresh("lenet5")
    (tmp_path / "theirs.safetensors").write_bytes(save(like_torch(checkpoint)))
    x = np.random.default_rng(4).integers(0, 4096, (5, 28, 28, 1)).astype(np.uint16)
    np.savez(tmp_path / "x.npz", x=x)
    words = ["import", tmp_path / "theirs.safetensors", "--recipe", "lenet5"]
    assert command(*words, "--max-value", "4095", "--out", tmp_path / "deep.h5").status == 0
    assert command(*words, "--out", tmp_path / "plain.h5").status == 0
    assert read(tmp_path / "deep.h5").max_value == 4095
    printed = command("predict", tmp_path / "deep.h5", tmp_path / "x.npz", "--json")
    found = [[*json.loads(line)["probabilities"].values()] for line in printed.out.splitlines()]
    expected = logits(np.multiply(x, 255 / 4095, dtype=np.float32))
    np.testing.assert_allclose(found, softmax(expected.astype(np.float64)), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(onnx_logits(as_onnx(read(tmp_path / "deep.h5")), x), expected, rtol=1e-4, atol=1e-3)
    refused = command("predict", tmp_path / "plain.h5", tmp_path / "x.npz")
    assert refused.status == 2 and "uint16 images of (28, 28, 1); this network takes uint8" in refused.errors[0]


@needs_export
def test_files_that_can_t_be_brought_in(tmp_path):
    from safetensors.numpy import save

    whole = as_safetensors(fresh("lenet5")[0])
    cut, foreign, odd = (tmp_path / name for name in ("cut.safetensors", "foreign.safetensors", "odd.safetensors"))
    cut.write_bytes(whole[:-100])
    foreign.write_bytes(save({"0.weight": np.zeros((3, 3), np.float32)}))
    odd.write_bytes(save({"0.weight": np.zeros(3, np.int64)}))
    told = {"config": 3, "image_shape": [28, 28, 1], "classes": 10, "step": 0}
    for name, text in (("list", "[]"), ("number", json.dumps(told)), ("text", "{")):
        (tmp_path / name).write_bytes(save({"0.weight": np.zeros(3, np.float32)}, metadata={"dpcnn": text}))
    (tmp_path / "there.h5").touch()
    for words, message in (
        ([cut], f"{cut}: can't be read as safetensors ("),
        ([tmp_path / "none"], f"{tmp_path / 'none'}: can't be read as safetensors ("),
        ([foreign], f"{foreign}: does not describe its network; give --recipe"),
        ([foreign, "--recipe", "lenet5"], f"{foreign}: conv2d1.w"),
        *(
            ([tmp_path / name], f"{tmp_path / name}: its description of the network is not")
            for name in ("list", "number")
        ),
        (
            [tmp_path / "text"],
            f"{tmp_path / 'text'}: its description of the network is not understood (not JSON: Expecting",
        ),
        ([odd], f"{odd}: 0.weight: expected floats, not int64"),
        (
            [foreign, "--recipe", "lenet5", "--image-shape", "28"],
            "--image-shape: expected H,W,C such as 28,28,1, not 28",
        ),
        (
            [foreign, "--recipe", "lenet5", "--max-value", "0"],
            "--max-value: expected a number from 1e-30 to 1e+30, not 0",
        ),
        (
            [foreign, "--max-value", "9", "--image-shape", "8,8,1"],
            "--image-shape, --max-value: for a network that --recipe names; give --recipe, or drop this",
        ),
        ([foreign, "--out", tmp_path / "there.h5"], f"{tmp_path / 'there.h5'}: exists; give another --out, or delete"),
    ):
        result = command("import", *words, cwd=tmp_path)
        assert result.status == 2 and result.errors[0].startswith(f"dpcnn: error: {message}"), (words, result.err)
        assert sorted(path.name for path in tmp_path.glob("*.h5")) == ["there.h5"]
