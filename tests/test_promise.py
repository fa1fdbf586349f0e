"""The promise on random cases: the number of ranks and nodes, and a stop on the way, never change a bit."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import dispatch
from conftest import many
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from threads import ThreadComm, factors_sent, run_ranks

from dpcnn.config import Config
from dpcnn.data.dataset import load
from dpcnn.errors import DivergenceError
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import read
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import MEASURED
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

SIDE, CLASSES = 9, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """70 training images of 9 x 9 in three classes."""
    folder, rng = tmp_path_factory.mktemp("promise"), np.random.default_rng(5)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (n, SIDE, SIDE), np.uint8) for split, n in (("train", 70), ("test", 4))
    }
    arrays |= {f"y_{split}": np.arange(n) % CLASSES for split, n in (("train", 70), ("test", 4))}
    np.savez(folder / "source.npz", **arrays)
    dispatch(SerialComm(), ["prepare", str(folder / "source.npz"), "--out", str(folder / "set"), "--shards", "2"])
    return folder / "set"


CONVOLUTIONS = st.builds(
    lambda filters, side, bias: {"kind": "conv2d", "filters": filters, "kernel_size": side, "padding": 1, "bias": bias},
    st.integers(1, 9), st.integers(1, 3), st.booleans(),
)  # fmt: skip
KINDS = ["relu", "tanh", "batchnorm", "localresponsenorm", "leakyrelu", "gelu", "silu", "layernorm"]
BETWEEN = st.sampled_from(KINDS).map(lambda kind: {"kind": kind})
MERGES = st.sampled_from(["add", "concat"]).map(lambda kind: [{"kind": "relu"}, {"kind": kind, "with": ["block"]}])
POOLS = st.builds(
    lambda kind, sides: {"kind": kind, **sides},
    st.sampled_from(["maxpool2d", "avgpool2d"]),
    st.sampled_from([{"kernel_size": 2}, {"kernel_size": 3, "stride": 2}]),
)
HIDDEN = st.integers(1, 120).map(lambda features: [{"kind": "linear", "features": features}, {"kind": "relu"}])
DROPOUT = st.sampled_from([[], [{"kind": "dropout", "p": 0.3}]])


@st.composite
def layers(draw) -> list[dict]:
    """A network from a few parameters, less than a block of the exchange, to some thousands."""
    found = [{"kind": "scale"}]
    for _ in range(draw(st.integers(0, 2))):
        found += [draw(CONVOLUTIONS), draw(BETWEEN)]
    if draw(st.booleans()):
        found += [{**draw(BETWEEN), "name": "block"}, *draw(MERGES)]
    found += draw(st.lists(POOLS, max_size=1))
    hidden = draw(st.sampled_from([[], draw(HIDDEN), [*draw(HIDDEN), *draw(DROPOUT), *draw(HIDDEN)]]))
    found += [{"kind": "flatten"}, *hidden, *draw(DROPOUT)]
    return [*found, {"kind": "linear", "bias": draw(st.booleans())}]


CHANGES = {
    "flip": st.sampled_from(["horizontal", "vertical", "both"]), "crop_padding": st.integers(1, 12),
    "crop_area": st.floats(0.1, 1), "colour_jitter": st.floats(0, 1), "cutout": st.integers(1, 12),
}  # fmt: skip
WITHOUT_DECAY = ["adam", "adagrad", "rmsprop"]
OPTIMIZERS = st.sampled_from([*WITHOUT_DECAY, "adamw", "sgd", "momentum", "nesterov", "lars", "lamb"])


def with_settings(draw, layers: list[dict], optimizer: str) -> list[dict]:
    """The layers, some with a learning rate and a weight decay of their own; others than the last one may be frozen."""
    found = []
    for layer in layers:
        settings = {}
        if layer["kind"] in ("conv2d", "linear", "batchnorm", "layernorm"):
            settings["lr"] = draw(st.sampled_from([1, 0.1, 2.5]))
            settings["freeze"] = draw(st.booleans()) and layer is not layers[-1]
        if layer["kind"] in ("conv2d", "linear") and optimizer not in WITHOUT_DECAY:
            settings["weight_decay"] = draw(st.sampled_from([False, 0.1]))
        found.append({**layer, **settings})
    return found


@st.composite
def configs(draw) -> Config:
    options = {"optimizer": draw(OPTIMIZERS), "layers": draw(layers())}
    if draw(st.booleans()):
        options["layers"] = with_settings(draw, options["layers"], options["optimizer"])
    if draw(st.booleans()):
        options["max_grad_norm"] = draw(st.sampled_from([0.001, 0.1, 5.0]))
    if draw(st.booleans()):
        options["ema_decay"] = 0.8
    if draw(st.booleans()):
        options |= {"shift": 1.0, "rotation": 10.0}
    if draw(st.booleans()):
        options |= draw(st.fixed_dictionaries({}, optional=CHANGES))
    return Config(
        model="random", validation=draw(st.sampled_from([0, 12])), epochs=2, lr=0.01, warmup=1,
        batch=draw(st.integers(1, 60)), microbatch=draw(st.integers(1, 24)), max_steps=draw(st.integers(2, 5)),
        seed=draw(st.integers(0, 2**63 - 1)), drift_check_every=draw(st.sampled_from([0, 1])), **options,
    )  # fmt: skip


NODES = st.lists(st.integers(1, 4), min_size=1, max_size=4) | st.just([1] * 8)


def trained(data: Path, config: Config, nodes: list[int], folder: Path, resume: bool = False) -> dict:
    """All that a run leaves, but for times."""

    def rank(comm: ThreadComm) -> None:
        samples = load(data, "train", comm)
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
        run = RunFolder(folder)
        trainer = Trainer(comm, config, network, samples, run, Reporter())
        if resume:
            trainer.restore(read(folder / "checkpoints" / "last.h5") if comm.rank == 0 else None)
        if comm.rank == 0:
            run.open(config, trainer.progress, fresh=not resume)
        trainer.fit()

    run_ranks(nodes, rank)
    last = read(folder / "checkpoints" / "last.h5")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": last.weights_sha256,
        "optimizer": {name: array.tobytes() for name, array in last.optimizer.items()},
        "events": [{k: v for k, v in event.items() if k not in MEASURED} for event in events],
    }


def outcome(*arguments, **options) -> dict | str:
    try:
        return trained(*arguments, **options)
    except DivergenceError as error:  # a random net may diverge: then on any ranks, in the same step and layer
        return str(error)


def examples(number: int):
    return settings(max_examples=number, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


@examples(16)
@given(config=configs(), nodes=NODES, others=NODES, factors=st.booleans(), copied=st.booleans())
def test_ranks_and_nodes_change_nothing(data, config, nodes, others, factors, copied):
    check_promise(data, config, nodes, others, factors, copied)


@pytest.mark.slow
@examples(many(64))
@given(config=configs(), nodes=NODES, others=NODES, factors=st.booleans(), copied=st.booleans())
def test_ranks_and_nodes_change_nothing_in_many_cases(data, config, nodes, others, factors, copied):
    check_promise(data, config, nodes, others, factors, copied)


def check_promise(data: Path, config: Config, nodes: list[int], others: list[int], factors: bool, copied: bool) -> None:
    """One rank; some nodes, which may send factors and each update the whole vector; and a run that is cut after its
    first step and resumed on other nodes."""
    with tempfile.TemporaryDirectory() as work, factors_sent(factors, copied):
        alone = outcome(data, config, [1], Path(work) / "alone")
        note(f"{config.network((SIDE, SIDE, 1), CLASSES).size} parameters")
        assert outcome(data, config, nodes, Path(work) / "nodes") == alone
        cut = Path(work) / "cut"
        first = outcome(data, replace(config, max_steps=1), others, cut)
        if isinstance(first, dict) and isinstance(alone, dict):
            assert outcome(data, config, nodes, cut, resume=True) == alone


def test_a_finite_gradient_with_an_infinite_sum_is_one_on_any_ranks(data, tmp_path):
    """A check of the sum of a rank's elements would end the run on one rank, and not on two."""
    layers = [
        {"kind": "scale", "span": 1e25},
        {"kind": "scale", "span": 2.55e12},
        {"kind": "flatten"},
        {"kind": "linear", "features": 512},
        {"kind": "linear"},
    ]
    config = Config(
        model="large", layers=layers, validation=0, epochs=1, max_steps=1, batch=40, microbatch=10, optimizer="sgd",
        lr=0.001, warmup=0, init="normal", init_std=0.1, seed=0,
    )  # fmt: skip
    assert isinstance(alone := outcome(data, config, [1], tmp_path / "alone"), dict)
    assert outcome(data, config, [1, 1], tmp_path / "nodes") == alone
