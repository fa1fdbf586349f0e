"""Networks as data: lists of layers, each a table of its kind and its options, as recipes write them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from dpcnn.base.options import types_of
from dpcnn.errors import ConfigError, nearest, printable, unknown_key
from dpcnn.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from dpcnn.nn.graph import NAME
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Normalise, Scale
from dpcnn.nn.merging import Add, Concat
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from dpcnn.nn.sample_norm import GroupNorm, LayerNorm, LocalResponseNorm

Spec = Sequence[Mapping[str, Any]]
MOST_LAYERS = 1_000

WIRING, UPDATE = ("kind", "name", "input", "with"), ("lr", "weight_decay", "freeze")
"""The keys of a layer's table that are not options of its kind: its connections, and how its parameters are updated."""

signature_of: Callable[[Any], inspect.Signature] = cache(inspect.signature)
"""The signature of a layer's constructor."""

MOST_FACTOR = 1e6
"""The largest ``lr`` and ``weight_decay`` of a layer."""

KINDS: dict[str, type[Layer]] = {
    kind.__name__.lower(): kind
    for kind in (
        Scale,
        Normalise,
        Conv2d,
        MaxPool2d,
        AvgPool2d,
        ReLU,
        Sigmoid,
        Tanh,
        BatchNorm,
        LocalResponseNorm,
        Dropout,
        Flatten,
        Linear,
        Add,
        Concat,
        GlobalAvgPool,
        LeakyReLU,
        GELU,
        SiLU,
        LayerNorm,
        GroupNorm,
    )
}

MODELS: dict[str, Spec] = {
    # 1.63 M parameters on 28x28x1. ReLU follows max-pooling, where it has a quarter of the
    # work: the two commute, values and gradients alike.
    "simple-cnn": [
        {"kind": "scale", "low": 0.01, "span": 0.99},
        {"kind": "conv2d", "filters": 16, "kernel_size": 3, "padding": 1},
        {"kind": "maxpool2d", "kernel_size": 2},
        {"kind": "relu"},
        {"kind": "conv2d", "filters": 32, "kernel_size": 3, "padding": 1},
        {"kind": "relu"},
        {"kind": "conv2d", "filters": 64, "kernel_size": 3, "padding": 1},
        {"kind": "maxpool2d", "kernel_size": 2},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "linear", "features": 512},
        {"kind": "relu"},
        {"kind": "dropout"},
        {"kind": "linear"},
    ],
    # 46,994 parameters: the fastest way to 99 %
    "small-cnn": [
        {"kind": "scale"},
        {"kind": "conv2d", "filters": 8, "kernel_size": 3, "padding": 1},
        {"kind": "maxpool2d", "kernel_size": 2},
        {"kind": "relu"},
        {"kind": "conv2d", "filters": 24, "kernel_size": 3, "padding": 1},
        {"kind": "maxpool2d", "kernel_size": 2},
        {"kind": "relu"},
        {"kind": "conv2d", "filters": 64, "kernel_size": 3, "padding": 1},
        {"kind": "relu"},
        {"kind": "flatten"},
        {"kind": "dropout"},
        {"kind": "linear", "bias": True},
    ],
    # one hidden layer: small enough to study a run by hand
    "mlp": [
        {"kind": "scale"},
        {"kind": "flatten"},
        {"kind": "linear", "features": 128, "bias": True},
        {"kind": "relu"},
        {"kind": "dropout"},
        {"kind": "linear", "bias": True},
    ],
}
"""The networks that ``--model`` names."""


def named_layers(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The values of a recipe; ``name`` is that of its ``layers`` if they have no other."""
    return {"model": printable(name), **values} if values.get("layers") else values


def build(spec: Spec, classes: int, dropout: float = 0.0) -> list[Layer]:
    """Make the layers of a network with this number of classes.

    A linear layer without ``features`` has one output per class. A dropout layer without ``p`` has
    the probability ``dropout``. With the probability 0, it is left out unless it has a name or names its input.

    Raises:
        ConfigError: a layer of an unknown kind, or with an unknown option or a wrong value.
    """
    layers: list[Layer] = []
    if len(spec) > MOST_LAYERS:
        raise ConfigError(f"{len(spec):,} layers; at most {MOST_LAYERS:,} are supported")
    for number, table in enumerate(spec, 1):
        options = {
            key: tuple(v) if isinstance(v, list) else v for key, v in table.items() if key not in WIRING + UPDATE
        }
        kind = table.get("kind")
        if "kind" not in table:
            raise ConfigError(f"layer {number}: kind is missing; known are {', '.join(KINDS)}")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(f"layer {number}: no kind {repr(kind)[:40]}; {nearest(str(kind)[:40], KINDS)}")
        where = f"layer {number} ({kind})"
        if kind == "linear":
            options.setdefault("features", classes)
        if kind == "dropout":
            options.setdefault("p", dropout)
        check(options, KINDS[kind], where)
        if kind == "dropout" and not options["p"] and not {"name", "input"} & table.keys():
            continue
        try:
            layers.append(KINDS[kind](**options))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        wire(layers[-1], table, where)
        set_update(layers[-1], table, where)
    return layers


def wire(layer: Layer, table: Mapping[str, Any], where: str) -> None:
    """Give a layer its ``name`` and the names of its inputs, ``input`` and ``with``.

    Raises:
        ConfigError: one of them is not a name.
    """
    others = table.get("with", [])
    others = [others] if isinstance(others, str) else others
    if not isinstance(others, list | tuple):
        raise ConfigError(f"{where}: with: expected a list of names, not {repr(others)[:40]}")
    for key, value in [
        ("name", table.get("name")),
        ("input", table.get("input")),
        *(("with", other) for other in others),
    ]:
        if value is not None and not (isinstance(value, str) and NAME.fullmatch(value)):
            raise ConfigError(f"{where}: {key}: expected letters, digits, - and _, not {repr(value)[:40]}")
    layer.name, layer.input, layer.others = table.get("name", ""), table.get("input", ""), tuple(others)


def set_update(layer: Layer, table: Mapping[str, Any], where: str) -> None:
    """Give a layer its ``lr``, its ``weight_decay`` (false stands for 0), and whether to ``freeze`` it.

    Raises:
        ConfigError: one of them is of the wrong type, or out of its bounds.
    """
    lr, decay, frozen = (table.get(key, default) for key, default in zip(UPDATE, (1.0, None, False), strict=True))
    if not (fits(lr, float) and 0 < lr <= MOST_FACTOR):
        raise ConfigError(f"{where}: lr: expected a factor above 0 of the learning rate, not {repr(lr)[:40]}")
    if not (decay is None or decay is False or (fits(decay, float) and 0 <= decay <= MOST_FACTOR)):
        raise ConfigError(f"{where}: weight_decay: expected false or a number from 0, not {repr(decay)[:40]}")
    if not isinstance(frozen, bool):
        raise ConfigError(f"{where}: freeze: expected true or false, not {repr(frozen)[:40]}")
    layer.lr, layer.weight_decay, layer.frozen = float(lr), None if decay is None else float(decay), frozen


def check(options: Mapping[str, Any], kind: type[Layer], where: str) -> None:
    """Check a layer's options against the signature of its constructor.

    Raises:
        ConfigError: an unknown option, one of the wrong type, or one that is missing. An argument of the type Any is no
            option.
    """
    types = types_of(kind.__init__)
    known = {name: each for name, each in signature_of(kind).parameters.items() if types.get(name) is not Any}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{where}: {unknown_key(name, known)}")
        if name not in types:
            raise ConfigError(f"{where}: {name}: {kind.__name__}.__init__ gives it no type; write {name}: float or int")
        if not fits(value, types[name]):
            expected = str(getattr(types[name], "__name__", types[name])).replace(" | None", "")
            raise ConfigError(f"{where}: {name}: expected {expected}, not {repr(value)[:40]}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise ConfigError(f"{where}: {name} is missing")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of an option's type: a number that is finite, a truth value, or a tuple of such."""
    if get_origin(annotation) is tuple:
        kind, *_ = get_args(annotation)
        return isinstance(value, tuple) and all(fits(each, kind) for each in value)
    if get_args(annotation):
        return any(fits(value, each) for each in get_args(annotation))
    if annotation is float:
        return type(value) in (int, float) and abs(value) < 1e30
    return type(value) is annotation
