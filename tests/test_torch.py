"""Layers and optimizers against PyTorch's, where it is installed."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from commands import training
from conftest import MNIST
from metrics import events

from dpcnn.base.rng import SampleRng
from dpcnn.config import from_dict
from dpcnn.nn.activations import ReLU, Sigmoid, Tanh
from dpcnn.nn.layers import Conv2d, Linear
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES, CrossEntropy, Huber, SigmoidCrossEntropy, SquaredError
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, MaxPool2d
from dpcnn.nn.sample_norm import LocalResponseNorm
from dpcnn.optim.clipping import clip_coefficient, squares
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.recipe import read_recipe
from dpcnn.runs.progress import Progress
from dpcnn.training.plateau import plateaus

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
RNG = np.random.default_rng(3)

PAIRS = {
    "conv2d": (Conv2d(5, 3, 2, 1, bias=True), lambda: torch.nn.Conv2d(3, 5, 3, 2, 1)),
    "winograd": (Conv2d(5, 3, 1, 1), lambda: torch.nn.Conv2d(8, 5, 3, 1, 1, bias=False)),
    "maxpool2d": (MaxPool2d(3, 2), lambda: torch.nn.MaxPool2d(3, 2)),
    "avgpool2d": (AvgPool2d(3, 2), lambda: torch.nn.AvgPool2d(3, 2)),
    "relu": (ReLU(), torch.nn.ReLU),
    "sigmoid": (Sigmoid(), torch.nn.Sigmoid),
    "tanh": (Tanh(), torch.nn.Tanh),
    "lrn": (LocalResponseNorm(5, 0.2, 0.6, 1.5), lambda: torch.nn.LocalResponseNorm(5, 5 * 0.2, 0.6, 1.5)),
    "batchnorm": (BatchNorm(0.01), lambda: torch.nn.BatchNorm2d(3, 0.01)),
    "linear": (Linear(7, bias=True), lambda: torch.nn.Linear(6, 7)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_layers(name):
    layer, make = PAIRS[name]
    theirs = make().double()
    shape = (6,) if name == "linear" else (9, 8, {"winograd": 8, "lrn": 7}.get(name, 3))
    layer.build(shape)
    x = RNG.standard_normal((*shape[:-1], 4, shape[-1]))
    weights = {p.name: RNG.standard_normal(p.shape) for p in layer.parameters}
    with torch.no_grad():
        for key, module in (("w", "weight"), ("b", "bias")):
            if key in weights:
                w = weights[key].transpose(3, 2, 0, 1) if weights[key].ndim == 4 else weights[key].T
                getattr(theirs, module).copy_(torch.from_numpy(np.ascontiguousarray(w)))
    there = torch.from_numpy(x.transpose(2, 3, 0, 1).copy() if x.ndim == 4 else x.copy()).requires_grad_()
    expected = theirs(there)
    y, backward = layer.forward(x.copy(), weights, SampleRng(0, 0, np.arange(4)))
    found = y.transpose(2, 3, 0, 1) if y.ndim == 4 else y
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-10, atol=1e-10)
    dy = RNG.standard_normal(found.shape)
    expected.backward(torch.from_numpy(dy))
    gradients = {key: np.empty_like(w) for key, w in weights.items()}
    dx = backward(np.ascontiguousarray(dy.transpose(2, 3, 0, 1)) if y.ndim == 4 else dy, gradients)
    dx = dx.transpose(2, 3, 0, 1) if dx.ndim == 4 else dx
    np.testing.assert_allclose(dx, there.grad.numpy(), rtol=1e-9, atol=1e-9)


F = torch.nn.functional
WEIGHTS = torch.linspace(0.25, 2.5, 10, dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "theirs"),
    [
        (CrossEntropy(0.1), partial(F.cross_entropy, label_smoothing=0.1)),
        (CrossEntropy(0.0, WEIGHTS.tolist()), partial(F.cross_entropy, weight=WEIGHTS)),
        (CrossEntropy(0.1, WEIGHTS.tolist()), partial(F.cross_entropy, weight=WEIGHTS, label_smoothing=0.1)),
        (SigmoidCrossEntropy(), F.binary_cross_entropy_with_logits),
        (SquaredError(), F.mse_loss),
        (Huber(0.6), partial(F.huber_loss, delta=0.6)),
    ],
    ids=str,
)
def test_losses(loss, theirs):
    outputs = RNG.standard_normal((6, 10))
    labels = {
        CLASSES: RNG.integers(0, 10, 6),
        MULTILABEL: RNG.integers(0, 2, (6, 10)).astype(float),
        VALUES: RNG.standard_normal((6, 10)),
    }[loss.targets]
    losses, gradient = loss.loss_and_gradient(outputs, labels)
    there = torch.from_numpy(outputs).requires_grad_()
    value = theirs(there, torch.from_numpy(labels), reduction="sum")
    value.backward()
    assert losses.sum() == pytest.approx(value.item())
    np.testing.assert_allclose(gradient, there.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("patience", [0, 2])
def test_the_schedule_plateau(patience):
    """Our loss decides between equal accuracies: here it is always the same."""
    config = from_dict({"schedule": "plateau", "plateau_patience": patience, "gamma": 0.5})
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], 1.0)
    there = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=patience, threshold=0.0, threshold_mode="abs", eps=0.0
    )
    progress = Progress()
    for epoch, accuracy in enumerate(RNG.integers(0, 6, 40).tolist(), 1):
        there.step(accuracy)
        progress.events.append(
            {"event": "epoch", "epoch": epoch, "validation_accuracy": accuracy, "validation_loss": 1.0}
        )
        assert 0.5 ** plateaus(progress, config) == optimizer.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, 0.01)),
        ("momentum", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, 0.01, eps=1e-7)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, 0.01)),
        ("adam", lambda p: torch.optim.Adam(p, 0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.01)),
    ],
)
def test_optimizers(name, make):
    ours = RNG.standard_normal(50)
    theirs = torch.from_numpy(ours.copy()).requires_grad_()
    optimizer, other = OPTIMIZERS[name](), make([theirs])
    state = optimizer.zeros(50, np.float64)
    for step in range(1, 8):
        g = RNG.standard_normal(50)
        optimizer.update(ours, g, state, step, 0.01)
        theirs.grad = torch.from_numpy(g.copy())
        other.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_batch_norm_s_running_statistics():
    """Ours follow the mean of what a batch's microbatches tell; with one microbatch, PyTorch's."""
    layer, theirs = BatchNorm(), torch.nn.BatchNorm2d(3).double()
    layer.build((5, 4, 3))
    running = {p.name: np.full(p.shape, p.initial_value) for p in layer.parameters}
    for _ in range(4):
        x = 2 + RNG.standard_normal((5, 4, 6, 3))
        y, backward = layer.forward(x.copy(), running, SampleRng(0, 0, np.arange(6)))
        gradients = {name: np.empty(3) for name in running}
        backward(np.zeros_like(y), gradients)
        for p in layer.parameters[2:]:
            running[p.name] += p.momentum * (gradients[p.name] / 6 - running[p.name])
        theirs(torch.from_numpy(x.transpose(2, 3, 0, 1).copy()))
    np.testing.assert_allclose(running["mean"], theirs.running_mean.numpy(), rtol=1e-10)
    np.testing.assert_allclose(running["variance"], theirs.running_var.numpy(), rtol=1e-10)
    x = RNG.standard_normal((5, 4, 6, 3))
    expected = theirs.eval()(torch.from_numpy(x.transpose(2, 3, 0, 1).copy())).detach().numpy()
    np.testing.assert_allclose(layer.forward(x, running)[0].transpose(2, 3, 0, 1), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [0.5, 100.0])
def test_clipping_by_the_global_norm(clip):
    gradient = RNG.standard_normal(3000)
    there = torch.zeros(3000, dtype=torch.float64, requires_grad=True)
    there.grad = torch.from_numpy(gradient.copy())
    norm = torch.nn.utils.clip_grad_norm_([there], clip).item()
    assert norm == pytest.approx(squares(gradient, 1024).sum() ** 0.5, rel=1e-12)
    np.testing.assert_allclose(clip_coefficient(norm, clip) * gradient, there.grad.numpy(), rtol=1e-5)


@pytest.mark.parametrize("recipe", ["mlp-adam", "lenet5"])
def test_a_recipe_s_first_steps_go_the_same_way_in_pytorch(recipe, quick, tmp_path):
    """The same first weights, data and order: what is left is rounding."""
    from dpcnn.evidence.peers.torch_recipe import train as train_in_torch

    config = replace(read_recipe(recipe), data=str(MNIST), max_steps=25)
    (told,) = train_in_torch(config)
    flags = ["--recipe", recipe, "--data", MNIST, "--max-steps", "25", "--test", "--out", tmp_path / "run"]
    assert training(*flags).status == 0
    (epoch,) = (event for event in events(tmp_path / "run") if event["event"] == "epoch")
    assert told["step"] == 25 and 0.3 < epoch["test_accuracy"] < 0.95
    assert told["test_accuracy"] == pytest.approx(epoch["test_accuracy"], abs=0.003)
