"""Settings of layers: learning rates, weight decay, freezing; LARS and LAMB, whose steps depend on norms of layers."""

import math

import numpy as np
import pytest
from commands import command, training
from metrics import events
from threads import run_ranks

from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import CrossEntropy
from dpcnn.optim.groups import parameter_groups
from dpcnn.optim.layerwise import LAMB, LARS
from dpcnn.optim.optimizers import AdamW
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import shard
from dpcnn.runs.checkpoint import read
from dpcnn.training.norms import Norms

RNG = np.random.default_rng(7)
SHAPE, CLASSES = (12, 12, 1), 10


def layers(**settings) -> list[dict]:
    """A small network; ``settings`` are those of its layers, by name."""
    spec = [
        {"kind": "scale", "name": "pixels"},
        {"kind": "conv2d", "name": "stem", "filters": 6, "kernel_size": 3, "bias": True},
        {"kind": "batchnorm", "name": "norm"},
        {"kind": "relu", "name": "act"},
        {"kind": "flatten", "name": "flat"},
        {"kind": "linear", "name": "hidden", "features": 20, "bias": True},
        {"kind": "linear", "name": "head", "bias": True},
    ]
    return [{**layer, **settings.get(layer["name"], {})} for layer in spec]


def network(optimizer: str = "adamw", **settings):
    return Config(model="m", layers=layers(**settings), optimizer=optimizer).network(SHAPE, CLASSES)


def test_biases_and_normalisation_do_not_decay():
    net = network(hidden={"weight_decay": 0.3}, head={"weight_decay": False})
    found = np.empty(net.size)
    for group in parameter_groups(net, AdamW(weight_decay=0.1)):
        found[group.start : group.stop] = group.optimizer.weight_decay
    decays = {name: set(view.ravel().tolist()) for name, view in net.views(found).items()}
    assert decays == {name: {0.0} for name in decays} | {"stem.w": {0.1}, "hidden.w": {0.3}}


def test_the_groups_are_the_whole_vector():
    net = network(stem={"lr": 0.1}, norm={"freeze": True})
    groups = parameter_groups(net, AdamW())
    assert [0, *(group.stop for group in groups)] == [*(group.start for group in groups), net.size]
    assert len(parameter_groups(network(), AdamW(weight_decay=0.0))) == 1


@pytest.mark.parametrize(
    ("optimizer", "settings", "message"),
    [
        ("adam", {"hidden": {"weight_decay": 0.1}}, "hidden: weight_decay: the optimizer adam has none"),
        ("adamw", {"norm": {"weight_decay": 0.1}}, "norm: weight_decay: the layer has no weights that decay"),
        ("adamw", {"act": {"freeze": True}}, "act: freeze: the layer has no parameters"),
        ("adamw", {"act": {"lr": 0.5}}, "act: lr: the layer has no parameters"),
        ("adamw", {"stem": {"lr": 0}}, "layer 2 (conv2d): lr: expected a factor above 0"),
        ("adamw", {"stem": {"weight_decay": True}}, "weight_decay: expected false or a number from 0, not True"),
        ("adamw", {"stem": {"freeze": 1}}, "freeze: expected true or false, not 1"),
        ("adamw", {key: {"freeze": True} for key in ["stem", "norm", "hidden", "head"]}, "every layer with parameters"),
    ],
)
def test_a_setting_without_effect_or_of_a_wrong_type_is_named(optimizer, settings, message):
    with pytest.raises(ConfigError) as caught:
        network(optimizer, **settings)
    assert message in str(caught.value)


def test_the_gradient_stops_at_the_first_layer_that_learns_and_is_zero_where_frozen():
    frozen = {"stem": {"freeze": True}, "norm": {"freeze": True}, "head": {"freeze": True}}
    net, free = network(**frozen), network()
    assert net.learning == [False] * 5 + [True] * 2 and not net.layers[5].needs_input_grad
    assert not net.running_stats and len(free.running_stats) == 2
    params, images = free.initialise(0), RNG.integers(0, 256, (8, *SHAPE), np.uint8)
    found = np.full(net.size, np.nan, np.float32)
    net.gradient(params, images, RNG.integers(0, CLASSES, 8), CrossEntropy(), found)
    zero = {name: not view.any() for name, view in net.views(found).items()}
    assert zero == {name: not name.startswith("hidden") for name in zero} and np.isfinite(found).all()


def test_frozen_parameters_and_running_means_keep_their_bits(quick, tmp_path):
    recipe = tmp_path / "frozen.toml"
    frozen = {"stem": {"freeze": True}, "norm": {"freeze": True}}
    tables = "".join(
        "[[layers]]\n"
        + "".join(f"{key} = {str(v).lower() if isinstance(v, bool) else repr(v)}\n" for key, v in t.items())
        for t in layers(**frozen)
    )
    recipe.write_text(f'model = "frozen"\noptimizer = "adamw"\nmax_grad_norm = 0.5\nema_decay = 0.9\n{tables}')
    result = training("--recipe", recipe, *quick, "--out", tmp_path / "run", ranks=[2, 1])
    assert result.status == 0, result.err
    last = read(tmp_path / "run" / "checkpoints" / "last.h5")
    net = last.network()
    for name, view in net.views(net.initialise(0)).items():
        same = view.tobytes() == last.parameters[name].tobytes()
        assert same == name.startswith(("stem", "norm")), name


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_norms_have_the_same_bits_on_any_number_of_ranks(ranks):
    size, intervals = 20_000, [(0, 700), (700, 5_000), (5_000, 5_001), (6_000, 17_777), (19_999, 20_000)]
    vectors = RNG.standard_normal((2, size)).astype(np.float32)

    def rank(comm):
        held = slice(*shard(size, comm.size, comm.rank))
        return Norms(comm, intervals, held)(*vectors[:, held])

    alone = Norms(SerialComm(), intervals, slice(0, size))(*vectors)
    exact = [[math.sqrt(math.fsum(vector[a:b].astype(float) ** 2)) for a, b in intervals] for vector in vectors]
    np.testing.assert_allclose(alone, exact, rtol=1e-6)
    for found in run_ranks([ranks], rank):
        np.testing.assert_array_equal(found, alone)


def test_lars_is_the_paper_s_algorithm():
    w, u, lars = RNG.standard_normal(50), np.zeros(50), LARS(weight_decay=0.1, trust_coefficient=0.02)
    ours, state = w.copy(), lars.zeros(50, np.float64)
    for step in range(1, 5):
        g = RNG.standard_normal(50)
        local = 0.02 * np.linalg.norm(w) / (np.linalg.norm(g) + 0.1 * np.linalg.norm(w))
        u = 0.9 * u + 0.5 * local * (g + 0.1 * w)
        w = w - u
        direction = 4 * g
        lars.direct(ours, direction, state, step, 1 / 4, [])
        ratio = lars.ratio(np.linalg.norm(ours), np.linalg.norm(direction))
        lars.update(ours, direction, state, step, 0.5 * ratio)
        np.testing.assert_allclose(ours, w, rtol=1e-12)


def test_lamb_is_the_paper_s_algorithm():
    x, m, v, lamb = RNG.standard_normal(50), np.zeros(50), np.zeros(50), LAMB(weight_decay=0.1)
    ours, state = x.copy(), lamb.zeros(50, np.float64)
    for step in range(1, 5):
        g = RNG.standard_normal(50)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + 0.1 * x
        x = x - 0.05 * np.linalg.norm(x) / np.linalg.norm(r) * r
        direction = 4 * g
        lamb.direct(ours, direction, state, step, 1 / 4, [])
        ratio = lamb.ratio(np.linalg.norm(ours), np.linalg.norm(direction))
        lamb.update(ours, direction, state, step, 0.05 * ratio)
        np.testing.assert_allclose(ours, x, rtol=1e-10)


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_layerwise_steps_have_one_hash_on_any_ranks_through_a_death_and_a_resume(quick, tmp_path, optimizer):
    flags = [*quick, "--model", "small-cnn", "--optimizer", optimizer, "--lr", "0.5", "--max-grad-norm", "3"]

    def weights(name: str) -> str:
        return events(tmp_path / name)[-1]["weights_sha256"]

    for name, ranks in (("one", 1), ("two", [1, 1]), ("three", [2, 1])):
        assert training(*flags, "--out", tmp_path / name, ranks=ranks).status == 0
    dying = ["--no-curves", "--stall-timeout", "0", "--out", tmp_path / "death"]
    assert command("train", *flags, *dying, ranks=[2, 1], dying={1: 150}).status == 0
    assert [event["lost"] for event in events(tmp_path / "death") if event["event"] == "death"]
    assert training(*flags, "--max-steps", "5", "--out", tmp_path / "cut", ranks=2).status == 0
    assert training("--resume", "--out", tmp_path / "cut", "--max-steps", "0", ranks=3).status == 0
    assert len({weights(name) for name in ("one", "two", "three", "death", "cut")}) == 1
