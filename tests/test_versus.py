"""The comparisons with PyTorch: both sides do the same training, and the ratios are what they say."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import command
from conftest import MNIST, run

from dpcnn.config import Config
from dpcnn.data.dataset import load
from dpcnn.errors import ConfigError, DivergenceError
from dpcnn.evidence.golden import POOLED
from dpcnn.evidence.jobs import complaint
from dpcnn.evidence.measure import WARM_UP, warm_up
from dpcnn.evidence.peers import options
from dpcnn.evidence.peers.speed import measure as peer_speed
from dpcnn.evidence.versus import COMPARED_STEP, PEERS, median_interval, remarks, summary
from dpcnn.nn.models import MODELS
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.plan import Plan
from dpcnn.training.trainer import Trainer

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")

GROUPED = [
    {"kind": "scale", "low": -1.0, "span": 2.0},
    {"kind": "conv2d", "filters": 12, "kernel_size": 5, "padding": 2, "stride": 2, "bias": True},
    {"kind": "batchnorm"},
    {"kind": "relu"},
    {"kind": "conv2d", "filters": 24, "kernel_size": 3, "padding": 1, "groups": 4},
    {"kind": "batchnorm", "momentum": 0.3},
    {"kind": "silu"},
    {"kind": "conv2d", "filters": 24, "kernel_size": 3, "padding": 2, "groups": 24, "stride": 2, "dilation": 2},
    {"kind": "localresponsenorm"},
    {"kind": "conv2d", "filters": 32, "kernel_size": 1},
    {"kind": "batchnorm"},
    {"kind": "relu"},
    {"kind": "globalavgpool"},
    {"kind": "linear", "bias": True},
]

OVERWRITTEN = [
    {"kind": "scale", "low": -1.0, "span": 2.0, "name": "a"},
    {"kind": "flatten"},  # a view in PyTorch, of what the convolution takes too
    {"kind": "relu"},
    {"kind": "linear", "features": 8, "name": "b"},
    {"kind": "conv2d", "filters": 8, "kernel_size": 5, "stride": 2, "input": "a"},
    {"kind": "tanh"},
    {"kind": "relu"},
    {"kind": "relu"},
    {"kind": "globalavgpool"},
    {"kind": "localresponsenorm"},
    {"kind": "add", "with": ["b"]},
    {"kind": "sigmoid"},
    {"kind": "relu"},
    {"kind": "linear"},
]

TRAININGS = {
    "lenet5": read_recipe("lenet5"),
    "mlp-adam": read_recipe("mlp-adam"),
    "simple-cnn": replace(read_recipe("simple-cnn"), dropout=0.0),
    "resnet20": read_recipe("resnet20"),  # with augmentation
    "grouped": Config(model="grouped", layers=GROUPED),
    "overwritten": Config(model="overwritten", layers=OVERWRITTEN),
    "pooled": Config(model="pooled", layers=POOLED),
    "clipping and an average": Config(model="mlp", max_grad_norm=0.1, ema_decay=0.9, schedule="step", rotation=9.0),
    "other augmentation": Config(model="mlp", flip="both", crop_padding=2, crop_area=0.5, cutout=4),
    **{name: Config(model="mlp", optimizer=name) for name in sorted(OPTIMIZERS.keys() - {"lars", "lamb"})},
}
"""Networks of all kinds with their own optimizers, and a small one with each optimizer that PyTorch has."""

RATES = {
    "simple-cnn": 1e-4,
    "grouped": 3e-3,  # PyTorch's gradients in channels-last differ from its own in NCHW, more in some processes
    "resnet20": 1e-3,
    "rmsprop": 1e-3,
    "sgd": 0.1,
    "momentum": 0.1,
    "nesterov": 0.1,
}
"""Learning rates with which the steps amplify rounding less than with 0.01."""


@needs_torch
@pytest.mark.parametrize("layout", ["nchw", "channels-last"])
@pytest.mark.parametrize("name", TRAININGS)
def test_both_networks_have_the_same_loss_after_three_steps(tmp_path, name, layout):
    from dpcnn.evidence.peers.torch_training import TorchTraining

    """Both compute the same in another order, so the first loss differs by rounding. In ResNet-20, PyTorch's in
    channels-last differs by 8e-6 from its own in float64 (dpcnn's by 1e-6): the bound is twice that. Three steps
    amplify it: Adam and batch normalisation divide by numbers near zero. So the last loss may differ by a thousandth of
    what the steps have changed, at least twice what was found. Another momentum moves it by more: see the next test."""
    values = {"data": str(MNIST), "batch": 64, "microbatch": 64, "warmup": 0, "lr": RATES.get(name, 0.01)}
    config = replace(TRAININGS[name], **values)
    samples = load(MNIST, "train", SerialComm())
    network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    ours = warm_up(Trainer(SerialComm(), config, network, samples, RunFolder(tmp_path), Reporter()))
    training, untrained = TorchTraining(config, samples, layout), TorchTraining(config, samples, layout)
    theirs = [training.step(number, training.batch(number)).item() for number in range(COMPARED_STEP + 1)]
    gain = untrained.step(COMPARED_STEP, untrained.batch(COMPARED_STEP)).item() - theirs[-1]
    assert abs(gain) > 0.01 * theirs[-1]
    assert ours[0] == pytest.approx(theirs[0], rel=1.6e-5)
    assert ours[COMPARED_STEP] == pytest.approx(theirs[-1], abs=1e-3 * abs(gain))


@needs_torch
def test_a_slightly_different_optimizer_would_be_noticed(tmp_path):
    """The bound of the test above is narrow enough for it to fail."""
    from dpcnn.evidence.peers.torch_training import TorchTraining

    samples = load(MNIST, "train", SerialComm())
    losses = []
    for momentum in (0.9, 0.89):
        config = Config(model="mlp", optimizer="momentum", lr=0.1, warmup=0, parts={"momentum": momentum})
        training = TorchTraining(config, samples, "nchw")
        losses.append([training.step(number, training.batch(number)).item() for number in range(COMPARED_STEP + 1)])
    (first, *_, one), (_, *_, other) = losses
    assert abs(one - other) > 1e-3 * abs(first - one)


@needs_torch
def test_the_processes_share_a_batch(small):
    from dpcnn.evidence.peers.torch_training import TorchTraining

    config = Config(model="mlp", data=str(small), batch=66, validation=0)
    samples = load(small, "train", SerialComm())
    whole, *parts = [TorchTraining(config, samples, "nchw", *share).batch(1) for share in ((), (0, 3), (1, 3), (2, 3))]
    for number, tensor in enumerate(whole):
        assert [len(part[number]) for part in parts] == [22, 22, 22]
        np.testing.assert_array_equal(np.concatenate([part[number] for part in parts]), tensor)


@needs_torch
def test_uneven_parts_of_a_batch_count_by_their_images(small):
    from dpcnn.evidence.peers.torch_training import TorchTraining

    samples = load(small, "train", SerialComm())
    config = Config(model="mlp", data=str(small), batch=len(samples) - 2, validation=0)

    def losses(number, *share):
        training = TorchTraining(config, samples, "nchw", *share)
        return training.step(number, training.batch(number)).item()

    for number, sizes in ((0, [200, 199, 199]), (1, [1, 1, 0])):
        parts = [losses(number, rank, 3) for rank, size in enumerate(sizes) if size]
        assert sum(parts) / 3 == pytest.approx(losses(number), rel=1e-6)


@pytest.mark.parametrize("peer", ["PyTorch", "JAX"])
def test_settings_of_a_layer_in_a_model_of_the_user_s_own_are_refused(monkeypatch, peer):
    monkeypatch.setitem(MODELS, "own", [{"kind": "scale"}, {"kind": "flatten"}, {"kind": "linear", "lr": 2.0}])
    with pytest.raises(ConfigError, match="has no layers with lr, weight_decay, freeze"):
        options.check_options(Config(model="own"), peer)


def test_the_reason_of_a_failure_is_the_last_line_of_a_traceback():
    trace = ["dpcnn: rank 0 of 2 failed:", "Traceback (most recent call last):", '  File "x", line 1', "KeyError: 'y'"]
    assert complaint("\n".join(["noise", *trace, "E1126 more"]), -1) == "dpcnn: rank 0 of 2 failed: KeyError: 'y'"
    assert complaint("noise\ndpcnn: error: one\nmore", -1) == "dpcnn: error: one"
    assert complaint("first\nlast\n---\n", -1) == "last" and complaint("", 0) == "nothing"


def test_a_loss_that_is_not_finite_is_an_error(small):
    training = Recorded(Config(model="mlp", data=str(small)), load(small, "train", SerialComm()))
    training.step = lambda number, batch: float("nan") if number == WARM_UP + 2 else 1.0
    with pytest.raises(DivergenceError, match="not finite"):
        peer_speed(training, 3, lambda: None)
    assert peer_speed(training, 2, lambda: None)[0] > 0


class Recorded:
    """A peer's training that notes the size of each batch."""

    def __init__(self, config, samples):
        self.config, self.plan, self.sizes = config, Plan(config, samples), []

    def batch(self, number):
        return self.plan.batch(0, number)

    def step(self, number, batch):
        self.sizes.append(len(batch))
        return number


def test_a_batch_of_each_size_precedes_the_timed_steps(small):
    """An epoch may end during them, and its last batch is smaller: XLA would compile the step again."""
    samples = load(small, "train", SerialComm())
    config = Config(model="mlp", data=str(small), batch=(len(samples) - 1) // (WARM_UP + 2), validation=0)
    training, started = Recorded(config, samples), []
    speed, losses = peer_speed(training, 5, lambda: started.append(len(training.sizes)))
    warm, timed = training.sizes[: started[0]], training.sizes[started[0] :]
    assert len(timed) == 5 and len(set(timed)) == 2 and set(timed) <= set(warm)
    assert speed > 0 and losses == list(range(WARM_UP))


def test_a_peer_s_large_arrays_take_the_memory_of_earlier_ones():
    code = """
from resource import RUSAGE_SELF, getrusage
from dpcnn.evidence.peers.speed import keep_memory
keep_memory()
for _ in range(20):
    b"x" * (1 << 25)
    print(getrusage(RUSAGE_SELF).ru_minflt)
"""
    faults = [int(line) for line in run(0, "-c", code).out.split()]
    assert len(faults) == 20 and faults[-1] - faults[0] < 100, "a new array has 8,192 pages"


@needs_torch
@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("class Odd(ReLU): ...\nKINDS['odd'] = Odd", [], "no PyTorch layer for Odd"),
        ("class Odd(CrossEntropy): ...\nLOSSES['odd'] = Odd", ["--loss", "odd"], "no PyTorch loss for odd; add one"),
        ("class Odd(SGD): ...\nOPTIMIZERS['odd'] = Odd", ["--optimizer", "odd"], "no PyTorch optimizer for odd; add"),
    ],
)
def test_what_pytorch_lacks_is_one_line(small, tmp_path, module, flags, message):
    start = "from dpcnn.nn.activations import ReLU\nfrom dpcnn.nn.models import KINDS\n"
    start += "from dpcnn.nn.losses import CrossEntropy, LOSSES\nfrom dpcnn.optim.optimizers import OPTIMIZERS, SGD\n"
    (tmp_path / "odd.py").write_text(start + module)
    layer = "odd" if "KINDS['odd']" in module else "relu"
    kinds = ("scale", "flatten", layer, "linear")
    (tmp_path / "odd.toml").write_text("".join(f'[[layers]]\nkind = "{kind}"\n' for kind in kinds))
    words = ["--versus", "torch", "--rounds", "1", "--recipe", tmp_path / "odd.toml", "--import", "odd"]
    result = run(0, "-m", "dpcnn.bench", *words, "--data", small, *flags, cwd=tmp_path)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0], result.err


def test_all_augmentations_and_what_affects_no_step_are_accepted():
    changed = {"crop_padding": 2, "crop_area": 0.5, "colour_jitter": 0.2, "cutout": 4, "memory": 64, "keep": 1}
    options.check_options(Config(flip="both", **changed), "PyTorch")


def test_an_option_that_only_dpcnn_has_is_refused(monkeypatch):
    options.check_options(TRAININGS["resnet20"], "PyTorch")
    monkeypatch.setattr(options, "THEIRS", options.THEIRS - {"shift"})
    with pytest.raises(ConfigError, match="--shift: JAX's side has no such option"):
        options.check_options(TRAININGS["resnet20"], "JAX")


@needs_torch
@pytest.mark.parametrize("peer", ["torch", "torch-threads"])
def test_jobs_in_turns(small, tmp_path, peer):
    """dpcnn on 2 ranks, and PyTorch on 2 processes or with 2 threads, see the same losses."""
    words = ["--versus", peer, "--batches", "8", "--rounds", "2", "--steps", "2", "--json", tmp_path / "v.json"]
    result = run(0, "-m", "dpcnn.bench", *words, "--model", "mlp", "--data", small, "--validation", "0", limit=180)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "v.json").read_text())
    rounds, ratios, losses = found["rounds"]["8"], found["ratios"]["8"], found["losses"]["8"]
    settings = PEERS[peer].settings
    assert len(rounds) == 2 and all(set(of) == {"dpcnn", "limit", *settings} for of in rounds)
    assert ratios["by_round"] == [of["dpcnn"] / max(of[name] for name in settings) for of in rounds]
    assert ratios["interval"][0] <= ratios["median"] <= ratios["interval"][1]
    assert losses["dpcnn"] == pytest.approx(losses["NCHW"], rel=1e-4)
    assert f"| batch per rank | dpcnn | {' | '.join(settings)} | ratio, median |" in result.out
    assert "warning" not in result.out


@pytest.mark.parametrize(("peer", "package"), [("torch", "torch"), ("torch-threads", "torch"), ("jax", "jax")])
def test_without_the_peer_it_says_how_to_get_it(peer, package):
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    result = command("bench", "--versus", peer)
    library = PEERS[peer].library
    assert result.status == 2
    assert result.errors == [
        f"dpcnn: error: --versus {peer}: {library} is not installed; get it: pip install 'dpcnn[{package}]'"
    ]


def test_the_files_that_a_reader_checks_are_short():
    folder = Path(options.__file__).parent
    files = [*folder.glob("jax_*.py"), folder / "torch_ddp.py", folder / "torch_training.py"]
    assert len(files) > 2 and all(len(path.read_text().splitlines()) <= 80 for path in files)


def test_compile_is_for_pytorch_alone():
    result = command("bench", "--versus", "jax", "--compile")
    assert result.status == 2 and "--compile: it is torch.compile" in result.errors[0]


def test_the_ratio_is_that_to_the_fastest_setting_of_each_round():
    rounds = [{"dpcnn": 6.0, "a": 2.0, "b": 3.0, "limit": 1.0}, {"dpcnn": 6.0, "a": 4.0, "b": 1.0, "limit": 1.0}]
    found = summary(rounds, ["a", "b"])
    assert found["by_round"] == [2.0, 1.5] and found["median"] == 1.75


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = median_interval(rng.exponential(size=15))
        covered += low <= np.log(2) <= high
    assert 0.90 <= covered / 200 <= 0.99
    values = rng.random(9)
    assert median_interval(values) == median_interval(values) and median_interval([2.0]) == (2.0, 2.0)
    low, high = median_interval(values)
    assert values.min() <= low < np.median(values) < high <= values.max()


def test_losses_that_differ_are_remarked():
    assert not remarks({32: {"dpcnn": 2.0, "NCHW": 2.01}})
    blank, warning = remarks({32: {"dpcnn": 2.0, "NCHW": 2.01}, 64: {"dpcnn": 2.0, "NCHW": 2.1}})
    assert not blank and "with a batch of 64 per rank" in warning
