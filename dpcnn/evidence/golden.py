"""Golden hashes: a table of the hashes of short trainings, which shows any change of bits.

The trainings use random images. There is one for each small recipe, and some for options that no recipe uses:
:data:`RUNS`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dpcnn.base import startup
from dpcnn.base.arrays import Array
from dpcnn.base.files import write_file
from dpcnn.base.numerics import describe, deviations, fingerprint
from dpcnn.base.text import text
from dpcnn.config import from_dict
from dpcnn.data.classes import numbered
from dpcnn.data.dataset import Samples
from dpcnn.data.shards import CROP, Manifest
from dpcnn.errors import ConfigError, nearest
from dpcnn.nn.losses import CLASSES, LOSSES, MULTILABEL, VALUES
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.drift import tensor_hashes
from dpcnn.training.evaluation import evaluate
from dpcnn.training.state import PARAMETERS
from dpcnn.training.trainer import Trainer

Hashes = dict[str, dict[str, str]]
"""By the step's number, and then by the tensor's name."""

TABLE = Path(__file__).with_name("golden.json")
STEPS, SIDE, OUTPUTS, EVALUATED = 5, 28, 10, 64

OTHER_LAYERS = [
    {"kind": "scale", "low": -1.0, "span": 2.0},
    {"kind": "conv2d", "filters": 8, "kernel_size": 5, "stride": 2, "bias": True, "name": "first"},
    {"kind": "localresponsenorm"},
    {"kind": "gelu"},
    {"kind": "conv2d", "filters": 8, "kernel_size": 3, "padding": 1, "groups": 8},
    {"kind": "groupnorm", "groups": 2},
    {"kind": "leakyrelu"},
    {"kind": "add", "with": ["first"]},
    {"kind": "concat", "with": ["first"]},
    {"kind": "conv2d", "filters": 12, "kernel_size": 3, "padding": 2, "dilation": 2},
    {"kind": "conv2d", "filters": 12, "kernel_size": 3, "padding": 1, "groups": 4},
    {"kind": "layernorm"},
    {"kind": "silu"},
    {"kind": "avgpool2d", "kernel_size": 2},
    {"kind": "conv2d", "filters": 16, "kernel_size": 1},
    {"kind": "maxpool2d", "kernel_size": 3, "stride": 2, "padding": 1},
    {"kind": "tanh"},
    {"kind": "globalavgpool"},
    {"kind": "linear", "bias": True},
]

ALL_OPTIONS = {
    "layers": [
        {"kind": "scale"},
        {"kind": "conv2d", "filters": 8, "kernel_size": 3, "padding": 1},
        {"kind": "maxpool2d", "kernel_size": 2},
        {"kind": "batchnorm"},
        {"kind": "relu"},
        {"kind": "dropout"},
        {"kind": "conv2d", "filters": 8, "kernel_size": 3, "bias": True},
        {"kind": "flatten"},
        {"kind": "linear"},
    ],
    "shift": 2,
    "rotation": 10,
    "zoom": 0.1,
    "elastic": 2.0,
    "dropout": 0.3,
    "max_grad_norm": 0.05,
    "ema_decay": 0.9,
    "init": "normal",
    "schedule": "one-cycle",
}

POOLED = [
    {"kind": "scale"},
    {"kind": "conv2d", "filters": 8, "kernel_size": 3, "padding": 1},
    {"kind": "batchnorm"},
    {"kind": "relu"},
    {"kind": "maxpool2d", "kernel_size": 3, "stride": 2, "padding": 1},
    {"kind": "conv2d", "filters": 8, "kernel_size": 3},
    {"kind": "batchnorm"},
    {"kind": "maxpool2d", "kernel_size": 2},
    {"kind": "flatten"},
    {"kind": "linear", "bias": True},
]
"""Normalisations that apply a pooling."""

NORMALISED = [
    {"kind": "normalise", "mean": [127.5], "deviation": [73.9]},
    {"kind": "flatten"},
    {"kind": "linear", "bias": True},
]

AUGMENTATION = {"flip": "both", "crop_padding": 3, "crop_area": 0.3, "colour_jitter": 0.4, "cutout": 8}
LARGE = {"mobilenet", "resnet18", "vgg11"}
"""Recipes whose steps take long. Their kinds of layers are in other trainings."""

RECIPES = sorted(path.name.removesuffix(".toml") for path in (files("dpcnn") / "recipes").iterdir())

RUNS: dict[str, dict[str, Any]] = {
    **{name: {} for name in RECIPES if name not in LARGE},
    **{optimizer: {"model": "mlp", "optimizer": optimizer, "init": "glorot"} for optimizer in OPTIMIZERS},
    **{loss: {"model": "mlp", "loss": loss} for loss in LOSSES},
    "class-weights": {"model": "mlp", "class_weights": [0.5, 2.0, 1.0, 0.0, 3.0, 1.0, 1.0, 0.25, 1.0, 1.5]},
    "mlp": {"model": "mlp", "schedule": "exponential"},
    "all-options": {"model": "all options", **ALL_OPTIONS},
    "normalise": {"model": "normalise", "layers": NORMALISED},
    "augmentation": {"model": "mlp", **AUGMENTATION},
    "pooled": {"model": "pooled", "layers": POOLED},
    "other-layers": {"model": "other layers", "layers": OTHER_LAYERS, "microbatch": 20},
}
"""The trainings by name, with the options that replace those of the recipe of this name, or of the default recipe."""


@cache
def random_samples(targets: str = CLASSES) -> Samples:
    """Random images (640, 28, 28, 1) of ten classes, labels or values, the same on every machine."""
    draws = np.random.Philox(0).random_raw(STEPS * 128 * (SIDE * SIDE // 8 + 1)).reshape(STEPS * 128, -1)
    images = draws[:, 1:].astype("<u8").view(np.uint8).reshape(-1, SIDE, SIDE, 1)
    bits = (draws[:, :1] >> np.arange(OUTPUTS, dtype=np.uint64) & 1).astype(np.uint8)
    labels: dict[str, Array] = {
        CLASSES: (draws[:, 0] % OUTPUTS).astype(np.uint8),
        MULTILABEL: bits,
        VALUES: (images[:, 0, :OUTPUTS, 0] / 255).astype(np.float32),
    }
    names, sha256s = numbered(OUTPUTS), {"train": "", "test": ""}
    manifest = Manifest("random", (SIDE, SIDE, 1), names, CROP, True, {}, sha256s, {}, targets)
    return Samples(manifest, (images,), np.array([0, len(images)]), labels[targets])


def train(name: str) -> Hashes:
    """Train a network of :data:`RUNS`: the hashes of all tensors after each step, and of an evaluation's losses."""
    own = {"validation": 0, "max_steps": STEPS, "warmup": 2, "numerics": startup.numerics, "data": "random"}
    path = files("dpcnn") / "recipes" / f"{name}.toml"
    recipe = read_recipe(name if path.is_file() else "simple-cnn")
    values = recipe.as_dict() if RUNS[name].keys().isdisjoint(("optimizer", "loss")) else {}
    config = from_dict({**values, **own, **RUNS[name]})
    network, comm, hashes = config.network((SIDE, SIDE, 1), OUTPUTS), SerialComm(), {}
    samples = random_samples(config.make_loss().targets)
    with TemporaryDirectory(prefix="dpcnn-golden-") as work, np.errstate(all="ignore"):
        trainer = Trainer(comm, config, network, samples, RunFolder(Path(work)), Reporter())
        for step in range(1, STEPS + 1):
            trainer.transact(trainer.train_step)()
            arrays = {name: array for name, array in trainer.state.now.items() if name != PARAMETERS}
            hashes[str(step)] = trainer.team.compare() | tensor_hashes(arrays)
        weights = trainer.team.weights()
        losses = evaluate(comm, network, weights, samples, np.arange(EVALUATED), config.make_loss()).losses
    hashes[str(STEPS)]["losses of an evaluation"] = sha256(losses.tobytes()).hexdigest()[:16]
    return hashes


def train_all(names: Sequence[str], say: Callable[[str], None]) -> dict[str, Hashes]:
    """The hashes of the trainings with these names, or of all trainings if there are no names.

    Raises:
        ConfigError: there is no such training.
    """
    for name in names:
        if name not in RUNS:
            raise ConfigError(f"--golden: no training {name!r}; {nearest(name, RUNS)}")
    hashes = {}
    for name in names or RUNS:
        say(f"{STEPS} steps of {name}")
        hashes[name] = train(name)
    return hashes


def read_table() -> dict[str, Any]:
    """The table of the package: for each numerics, its fingerprint and the hashes of all trainings."""
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    return table


def write_table(hashes: Mapping[str, Hashes]) -> None:
    """Write the hashes of this process's numerics into the table.

    Raises:
        ConfigError: a training is missing, or this machine's numerics deviate from the pinned ones.
    """
    if hashes.keys() != RUNS.keys() or deviations():
        raise ConfigError(f"--write-golden: the table needs all trainings, by a pinned NumPy; {deviations()}")
    table = read_table() | {startup.numerics: {"fingerprint": fingerprint(), "runs": hashes}}
    write_file(TABLE, json.dumps(table, indent=0, sort_keys=True).encode() + b"\n")


def compare(expected: Mapping[str, Hashes], found: Mapping[str, Hashes]) -> dict[str, str]:
    """For each training in ``found``, the first step and tensor that differ from the table; empty: none."""
    return {name: first_difference(expected.get(name, {}), hashes) for name, hashes in found.items()}


def first_difference(expected: Hashes, found: Hashes) -> str:
    """The first step and tensor whose hashes differ; empty: none."""
    if not expected:
        return "not in the table"
    for step, tensors in found.items():
        for name in {**expected.get(step, {}), **tensors}:
            if tensors.get(name) != expected.get(step, {}).get(name):
                return f"step {step}, {name}"
    return "" if len(expected) == len(found) else f"{len(found)} steps instead of {len(expected)}"


def report(different: Mapping[str, str], entry: Mapping[str, Any]) -> str:
    """A row for each training, the differences of the fingerprints, and the verdict."""
    rows = [(name, "FAIL" if difference else "PASS", difference) for name, difference in different.items()]
    lines = [text(("training", "verdict", "first difference"), rows)]
    ours, stored = fingerprint(), entry.get("fingerprint", {})
    changed = [describe(key, stored[key], ours[key]) for key in stored if stored[key] != ours[key]]
    if changed:
        lines.append(f"the numerics differ from those of the table: {'; '.join(changed)}")
    lines.append("FAIL" if any(different.values()) else "PASS")
    return "\n".join(lines)
