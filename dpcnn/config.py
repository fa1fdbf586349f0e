"""The one source of a run's options: flags, recipe files and checkpoints all come from here."""

import math
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

from dpcnn.base.arrays import Shape
from dpcnn.base.fields import MOST_INTEGER, FieldError, load_toml, name
from dpcnn.base.files import MOST_RECIPE, read_bytes
from dpcnn.base.startup import NUMERICS
from dpcnn.errors import ConfigError, unknown_key
from dpcnn.nn.initialisers import INITS
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.optim.schedules import SCHEDULES

Scalar = int | float | str | bool

MOST_BATCH, MOST_EPOCHS = 2**31 - 1, 1_000_000


def _option(
    default: Scalar,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float = MOST_INTEGER,
    choices: Collection[str] | None = None,
    free: bool = False,
) -> Any:
    """A field of :class:`Config` with its bounds; ``free``: may change when a run is resumed."""
    bounds = {"least": least, "above": above, "below": below, "most": most}
    return field(
        default=default,
        metadata={"help": help, "bounds": bounds, "choices": sorted(choices) if choices else None, "free": free},
    )


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result, and how long it goes on.

    The defaults are those of the recipe ``simple-cnn``, except for the validation samples: that recipe keeps the cut
    with which its network was published.

    Raises:
        ConfigError: a value out of its range or of the wrong type.
    """

    model: str = _option(
        "simple-cnn", f"network: {', '.join(MODELS)}; with layers in a recipe, the name of that network"
    )
    layers: list[dict[str, Any]] = field(default_factory=list, metadata={"free": False})
    data: str = _option("mnist", "data set: a name under data/, or a folder", free=True)
    validation: float = _option(
        0.1, "training samples held back for validation: a number, or a fraction below 1", least=0
    )
    holdout: str = _option(
        "stratified",
        "stratified: the seed draws validation samples from each class in proportion; last: the last samples",
        choices=("stratified", "last"),
    )
    test: bool = _option(False, "evaluate on the test samples after each epoch", free=True)
    epochs: int = _option(8, "epochs of the whole run", least=1, most=MOST_EPOCHS, free=True)
    max_steps: int = _option(0, "end the run after this many steps; 0: after its epochs", least=0, free=True)
    batch: int = _option(128, "global batch: samples per step, over all ranks", least=1, most=MOST_BATCH)
    microbatch: int = _option(
        32,
        "samples per gradient computation; it decides the bits, and must not depend on the ranks",
        least=1,
        most=MOST_BATCH,
    )
    seed: int = _option(
        0, "seed of the initial weights, the order of samples, augmentation and dropout", least=0, most=2**63 - 1
    )
    shift: float = _option(0.0, "augmentation: largest shift of training images, in pixels", least=0, most=10_000)
    rotation: float = _option(0.0, "augmentation: largest rotation, in degrees", least=0, below=181)
    zoom: float = _option(0.0, "augmentation: largest zoom in or out, as a fraction", least=0, below=1)
    elastic: float = _option(
        0.0, "augmentation: standard deviation of the elastic deformation, in pixels", least=0, most=10_000
    )
    dropout: float = _option(0.0, "probability of the dropout layers that have none of their own", least=0, below=1)
    init: str = _option("he", "initialisation of the weights", choices=INITS)
    init_std: float = _option(0.01, "standard deviation of --init normal", above=0, most=1_000)
    optimizer: str = _option("adam", "update rule", choices=OPTIMIZERS)
    lr: float = _option(0.003, "learning rate", above=0, most=1e30)
    momentum: float = _option(0.9, "momentum of the optimizers momentum and nesterov", least=0, below=1)
    weight_decay: float = _option(0.01, "weight decay of the optimizer adamw", least=0, most=1e6)
    max_grad_norm: float = _option(0.0, "clip the global gradient norm to this value; 0: no clipping", least=0)
    ema_decay: float = _option(
        0.0,
        "decay of the exponential moving average of the weights, which is evaluated and stored; 0: no average",
        least=0,
        below=1,
    )
    schedule: str = _option("cosine", "learning-rate schedule", choices=SCHEDULES)
    gamma: float = _option(0.8, "factor of the schedules exponential and step", above=0, most=1_000)
    warmup: int = _option(200, "steps of linear warm-up of the learning rate", least=0)
    label_smoothing: float = _option(
        0.01, "label smoothing: fraction of each target spread over all classes", least=0, below=1
    )
    monitor: str = _option(
        "accuracy",
        "validation metric that chooses the best epoch; with accuracy, the loss decides between equals",
        choices=("accuracy", "loss"),
        free=True,
    )
    patience: int = _option(
        0,
        "early stopping: epochs without improvement of --monitor after which the run ends; 0: never",
        least=0,
        free=True,
    )
    exchange: str = _option(
        "exact", "exact: the same bits on any number of ranks; allreduce: MPI's own sum", choices=("exact", "allreduce")
    )
    numerics: str = _option(
        "native",
        "native: the fastest kernels of this processor; portable: the same bits on every x86-64 processor with AVX2",
        choices=NUMERICS,
    )
    checkpoint_every: int = _option(
        0, "steps between checkpoints, in addition to one per epoch; 0: none", least=0, free=True
    )
    drift_check_every: int = _option(
        100, "steps between comparisons of the ranks' parameters; 0: only at checkpoints", least=0, free=True
    )
    keep: int = _option(3, "newest checkpoints to keep, in addition to the best", least=1, free=True)

    def __post_init__(self) -> None:
        for option in fields(self):
            if option.name != "layers":
                check(option, getattr(self, option.name))
        if self.patience and not self.validation:
            raise ConfigError("--patience: needs --validation samples to judge by")
        if self.validation >= 1 and self.validation % 1:
            raise ConfigError(f"--validation: expected a whole number, or a fraction below 1, not {self.validation:g}")
        if not (isinstance(self.layers, list) and all(isinstance(layer, dict) for layer in self.layers)):
            raise ConfigError("layers: expected a list of tables, [[layers]] in TOML")
        if not self.layers and self.model not in MODELS:
            raise ConfigError(f"--model: no {self.model!r}; choose from {', '.join(sorted(MODELS))}")

    def network(self, image_shape: Shape, classes: int) -> Network:
        """The network for images (H, W, C) of so many classes.

        Raises:
            ConfigError: the layers don't fit each other, the images or the classes.
        """
        network = Network(image_shape, build(self.layers or MODELS[self.model], classes, self.dropout))
        if network.classes != classes:
            raise ConfigError(f"the model has {network.classes} classes; the data has {classes}")
        return network


def check(option: Field[Any], value: Any) -> None:
    """Hold a value against its field's type, bounds and choices."""
    flag = "--" + option.name.replace("_", "-")
    kind = TYPES[option.name]
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{flag}: expected {kind.__name__}, not {_short(value)}")
    choices = option.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{flag}: no {value!r}; choose from {', '.join(choices)}")
    if isinstance(value, str):
        try:
            name(value, flag)
        except FieldError as error:
            raise ConfigError(str(error)) from None
    elif not isinstance(value, bool):
        _check_bounds(flag, value, option.metadata["bounds"])


def _check_bounds(flag: str, value: float, bounds: Mapping[str, float | None]) -> None:
    if abs(value) == math.inf:
        raise ConfigError(f"{flag}: must be a number, not {value}")
    least, above, below, most = (bounds[key] for key in ("least", "above", "below", "most"))
    if least is not None and not value >= least:
        raise ConfigError(f"{flag}: must be at least {least}, not {_short(value)}")
    if above is not None and not above < value:
        raise ConfigError(f"{flag}: must be a number above {above}, not {_short(value)}")
    if below is not None and not value < below:
        raise ConfigError(f"{flag}: must be below {below}, not {_short(value)}")
    if most is not None and not value <= most:
        raise ConfigError(f"{flag}: must be at most {most}, not {_short(value)}")


def _short(value: Any) -> str:
    return "a number of many digits" if isinstance(value, int) and abs(value) > 2**64 else repr(value)[:60]


TYPES: dict[str, type[Any]] = get_type_hints(Config)


def from_dict(values: Mapping[str, Any], where: str = "", whole: bool = False) -> Config:
    """A config of named values, defaults for the rest.

    Args:
        where: what the message of an error starts with.
        whole: every field must be there, as in what this program has written itself.

    Raises:
        ConfigError: an unknown key, or a value that won't do.
    """
    known = [option.name for option in fields(Config)]
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}{unknown_key(key, known)}")
    missing = [key for key in known if key not in values]
    if whole and missing:
        raise ConfigError(f"{where}{missing[0]} is missing")
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
    try:
        content = (folder / f"{name}.toml").read_bytes() if name in named else read_bytes(Path(name), MOST_RECIPE)
        return from_dict(load_toml(content), f"recipe {name}: ")
    except FileNotFoundError:
        raise ConfigError(f"--recipe: no recipe and no file {name!r}; recipes are {', '.join(named)}") from None
    except OSError as error:
        raise ConfigError(f"recipe {name}: {error.strerror}") from None
    except FieldError as error:
        raise ConfigError(f"recipe {name}: {error}") from None
