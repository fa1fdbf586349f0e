"""The one source of a run's options: flags, recipe files and checkpoints all come from here."""

import tomllib
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from dpcnn.errors import ConfigError, unknown_key
from dpcnn.memory import Shape
from dpcnn.nn.initialise import INITS
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.optim import OPTIMIZERS, SCHEDULES
from dpcnn.parallel.exchange import EXCHANGES

Scalar = int | float | str


def _option(
    default: Scalar,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Mapping[str, Any] | None = None,
    free: bool = False,
) -> Any:
    """A field of :class:`Config` with its bounds; ``free``: may change when a run is resumed."""
    bounds = {"least": least, "above": above, "below": below}
    return field(
        default=default,
        metadata={"help": help, "bounds": bounds, "choices": sorted(choices) if choices else None, "free": free},
    )


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result, and how long it goes on.

    The defaults are those of the recipe ``simple-cnn``.

    Raises:
        ConfigError: a value out of its range or of the wrong type.
    """

    model: str = _option(
        "simple-cnn", f"network: {', '.join(MODELS)}; with layers in a recipe, the name of that network"
    )
    layers: list[dict[str, Any]] = field(default_factory=list, metadata={"free": False})
    data: str = _option("mnist", "data set: a name under data/, or a folder", free=True)
    validation: int = _option(10_000, "training samples, the last ones, held back for validation", least=0)
    epochs: int = _option(8, "epochs of the whole run", least=1, free=True)
    max_steps: int = _option(0, "end the run after this many steps; 0: after its epochs", least=0, free=True)
    batch: int = _option(128, "global batch: samples of a step, whatever the number of ranks", least=1)
    microbatch: int = _option(32, "samples whose gradient is computed at once", least=1)
    seed: int = _option(
        0, "of the first weights, the order of samples, their changes, and dropout", least=0, below=2**63
    )
    shift: float = _option(0.0, "pixels by which training images are moved, at most", least=0)
    rotation: float = _option(0.0, "degrees by which they are turned, at most", least=0, below=181)
    zoom: float = _option(0.0, "part by which they grow or shrink, at most", least=0, below=1)
    elastic: float = _option(0.0, "pixels by which each of their pixels is moved besides, on average", least=0)
    dropout: float = _option(0.0, "part of the last linear layer's input dropped in training", least=0, below=1)
    init: str = _option("he", "first values of the weights", choices=INITS)
    init_deviation: float = _option(0.01, "standard deviation of init normal", above=0)
    optimizer: str = _option("adam", "rule of the update", choices=OPTIMIZERS)
    lr: float = _option(0.003, "learning rate", above=0)
    momentum: float = _option(0.9, "of the optimizers momentum and nesterov", least=0, below=1)
    weight_decay: float = _option(0.01, "of the optimizer adamw", least=0)
    clip: float = _option(0.0, "longer gradients are shortened to this norm; 0: none is", least=0)
    average: float = _option(
        0.0, "evaluate and keep a running average of the weights, of which each step keeps this part", least=0, below=1
    )
    schedule: str = _option("cosine", "course of the learning rate", choices=SCHEDULES)
    lr_decay: float = _option(0.8, "factor of the schedules exponential and step", above=0)
    warmup: int = _option(200, "steps over which the learning rate rises from 0", least=0)
    label_smoothing: float = _option(0.01, "part of each target spread over all classes", least=0, below=1)
    patience: int = _option(
        0, "end the run after so many epochs without a better validation accuracy; 0: never", least=0, free=True
    )
    exchange: str = _option(
        "exact", "exact: the same bits on any number of ranks; allreduce: MPI's own sum", choices=EXCHANGES
    )
    checkpoint_every: int = _option(0, "steps between checkpoints, besides the one an epoch", least=0, free=True)
    guard_every: int = _option(
        100, "steps between comparisons of what the ranks see; 0: only at checkpoints", least=0, free=True
    )
    keep: int = _option(3, "newest checkpoints kept, besides the best", least=1, free=True)

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name != "layers":
                check(option, getattr(self, option.name))
        if self.patience and not self.validation:
            raise ConfigError("--patience: needs --validation samples to judge by")
        if not self.layers and self.model not in MODELS:
            raise ConfigError(f"--model: no {self.model!r}; choose from {', '.join(sorted(MODELS))}")
        if not (isinstance(self.layers, list) and all(isinstance(layer, dict) for layer in self.layers)):
            raise ConfigError(f"layers: expected a list of tables, [[layers]] in TOML, not {self.layers!r}")

    def network(self, image_shape: Shape, classes: int) -> Network:
        """The network for images (H, W, C) of so many classes.

        Raises:
            ConfigError: the layers don't fit each other, the images or the classes.
        """
        network = Network(image_shape, build(self.layers or MODELS[self.model], classes, self.dropout))
        if network.classes != classes:
            raise ConfigError(f"the model tells {network.classes} classes apart; the data has {classes}")
        return network


def check(option: Field[Any], value: Any) -> None:
    """Hold a value against its field's type, bounds and choices."""
    flag = "--" + option.name.replace("_", "-")
    kinds = {int: (int,), float: (int, float), str: (str,)}[TYPES[option.name]]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ConfigError(f"{flag}: expected {TYPES[option.name].__name__}, not {value!r}")
    choices, bounds = option.metadata["choices"], option.metadata["bounds"]
    if choices and value not in choices:
        raise ConfigError(f"{flag}: no {value!r}; choose from {', '.join(choices)}")
    if not isinstance(value, int | float):
        return
    if bounds["least"] is not None and not value >= bounds["least"]:
        raise ConfigError(f"{flag}: must be at least {bounds['least']}, not {value}")
    if value == float("inf"):
        raise ConfigError(f"{flag}: must be a number, not {value}")
    if bounds["above"] is not None and not bounds["above"] < value:
        raise ConfigError(f"{flag}: must be a number above {bounds['above']}, not {value}")
    if bounds["below"] is not None and not value < bounds["below"]:
        raise ConfigError(f"{flag}: must be below {bounds['below']}, not {value}")


TYPES: dict[str, type[Any]] = get_type_hints(Config)


def from_dict(values: Mapping[str, Any], where: str = "") -> Config:
    """A config of named values, defaults for the rest.

    Raises:
        ConfigError: an unknown key, or a value that won't do; the message starts with ``where``.
    """
    known = [option.name for option in fields(Config)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}{unknown_key(key, known)}")
    try:
        return Config(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def read_recipe(name: str) -> Config:
    """A recipe by its name, as in dpcnn/recipes/, or by the path of a TOML file.

    Raises:
        ConfigError: there is none, or it is not right.
    """
    folder = files("dpcnn") / "recipes"
    named = sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))
    path = folder / f"{name}.toml" if name in named else Path(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--recipe: no recipe and no file {name!r}; recipes are {', '.join(named)}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"recipe {name}: {error}") from None
    return from_dict(values, f"recipe {name}: ")
