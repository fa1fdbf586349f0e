"""The one source of a run's options: flags, recipe files and checkpoints all come from here."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

from dpcnn.base.arrays import Shape
from dpcnn.base.fields import is_sha256
from dpcnn.base.imports import check_imports
from dpcnn.base.options import check_options, flag_of, option, options_of
from dpcnn.base.startup import NUMERICS
from dpcnn.errors import ConfigError, unknown_key
from dpcnn.nn.initialisers import INITS
from dpcnn.nn.losses import LOSSES, Loss
from dpcnn.nn.metrics import METRICS
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.optim.groups import check_settings
from dpcnn.optim.optimizer import Optimizer
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.optim.schedules import PLATEAU, SCHEDULES

MOST_BATCH, MOST_EPOCHS, MOST_MEMORY = 2**31 - 1, 1_000_000, 1 << 20
FLIPS = ("none", "horizontal", "vertical", "both")
AUTO = "auto"


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result and its length.

    The defaults are those of the recipe ``simple-cnn``, except for the validation samples: that recipe keeps the cut
    with which its network was published.

    Attributes:
        layers: the layers of the network, as tables; empty: those of ``model``.
        imports: modules of the user that the run needs.
        parts: the options of the optimizer and of the loss, by name; those that are not given have their defaults.

    Raises:
        ConfigError: a value out of its range or of the wrong type; or a module of ``imports`` is not imported.
    """

    model: str = option("simple-cnn", f"network: {', '.join(MODELS)}; or the name of the network in the recipe")
    layers: list[dict[str, Any]] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    data: str = option("mnist", "data set: a name under data/, or a folder", free=True)
    validation: float = option(
        0.1, "training samples held back for validation: a number, or a fraction below 1", least=0
    )
    holdout: str = option(
        "stratified",
        "stratified: the seed draws validation samples from each class in proportion; last: the last samples",
        choices=("stratified", "last"),
    )
    test: bool = option(False, "evaluate on the test samples after each epoch", free=True)
    epochs: int = option(8, "epochs of the whole run", least=1, most=MOST_EPOCHS, free=True)
    max_steps: int = option(0, "end the run after this many steps; 0: after its epochs", least=0, free=True)
    batch: int = option(128, "global batch: samples per step, over all ranks", least=1, most=MOST_BATCH)
    microbatch: int = option(
        32,
        "samples per gradient computation; it affects the bits, so do not choose it by the number of ranks",
        least=1,
        most=MOST_BATCH,
    )
    seed: int = option(
        0, "seed of the initial weights, the order of samples, augmentation and dropout", least=0, most=2**63 - 1
    )
    shift: float = option(0.0, "augmentation: largest shift of training images, in pixels", least=0, most=10_000)
    rotation: float = option(0.0, "augmentation: largest rotation, in degrees", least=0, below=181)
    zoom: float = option(0.0, "augmentation: largest zoom in or out, as a fraction", least=0, below=1)
    elastic: float = option(
        0.0, "augmentation: standard deviation of the elastic deformation, in pixels", least=0, most=10_000
    )
    flip: str = option("none", "augmentation: mirror half of the training images", choices=FLIPS, later=True)
    crop_padding: int = option(0, "augmentation: zeros on each side before a crop", least=0, most=10_000, later=True)
    crop_area: float = option(1.0, "augmentation: smallest part of the area in a crop", above=0, most=1, later=True)
    colour_jitter: float = option(
        0.0, "augmentation: largest change of brightness, contrast and saturation", least=0, most=1, later=True
    )
    cutout: int = option(0, "augmentation: side of a square of zeros, in pixels", least=0, most=10_000, later=True)
    dropout: float = option(0.0, "drop probability of dropout layers without p", least=0, below=1)
    init_from: str = option(
        "",
        "warm start: a checkpoint, or a run's folder, whose parameters the new run takes over wherever the name and "
        "the shape agree",
        later=True,
    )
    init_from_sha256: str = option("", "the weights_sha256 that --init-from must have; the run fills it in", later=True)
    init: str = option("he", "initialisation of the weights", choices=INITS)
    init_std: float = option(0.01, "standard deviation of --init normal", above=0, most=1_000)
    optimizer: str = option("adam", "update rule", choices=OPTIMIZERS)
    lr: float = option(0.003, "learning rate", above=0, most=1e30)
    max_grad_norm: float = option(0.0, "clip the global gradient norm to this value; 0: no clipping", least=0)
    ema_decay: float = option(
        0.0,
        "decay of the exponential moving average of the weights; the run evaluates and stores the average; 0: none",
        least=0,
        below=1,
    )
    schedule: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    gamma: float = option(0.8, "factor of the schedules exponential, step and plateau", above=0, most=1_000)
    plateau_patience: int = option(
        5, "schedule plateau: epochs without improvement of --monitor that do not change the rate", least=0, later=True
    )
    warmup: int = option(200, "steps of linear warm-up of the learning rate", least=0)
    loss: str = option("cross-entropy", "loss function", choices=LOSSES)
    monitor: str = option(
        AUTO,
        f"validation metric that chooses the best epoch: {', '.join(METRICS)}; auto: the first metric of the loss "
        "function; the loss decides between equal values",
        free=True,
    )
    patience: int = option(
        0, "early stopping: end after this many epochs without improvement of --monitor; 0: never", least=0, free=True
    )
    memory: int = option(
        256, "evaluation: MB per rank for the images evaluated at once", least=1, most=MOST_MEMORY, later=True
    )
    exchange: str = option(
        "exact", "exact: the same bits on any number of ranks; allreduce: MPI's own sum", choices=("exact", "allreduce")
    )
    numerics: str = option(
        "native",
        "native: the fastest kernels of this processor; portable: the same bits on every x86-64 processor with AVX2",
        choices=NUMERICS,
    )
    checkpoint_every: int = option(
        0, "steps between checkpoints, in addition to one per epoch; 0: none", least=0, free=True
    )
    drift_check_every: int = option(
        100,
        "steps between drift checks, which compare the parameters of all ranks; 0: only at checkpoints",
        least=0,
        free=True,
    )
    keep: int = option(3, "newest checkpoints to keep, in addition to the best", least=1, free=True)
    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_imports(self.imports)
        check_options(self)
        object.__setattr__(self, "parts", self._complete(self.parts))
        self.make_optimizer()  # it checks its options
        self._check_monitor(self.make_loss().metrics)
        if self.validation >= 1 and self.validation % 1:
            raise ConfigError(f"--validation: expected a whole number, or a fraction below 1, not {self.validation:g}")
        self._check_source()
        if not (isinstance(self.layers, list) and all(isinstance(layer, dict) for layer in self.layers)):
            raise ConfigError("layers: expected a list of tables, [[layers]] in TOML")
        if not self.layers and self.model not in MODELS:
            raise ConfigError(f"--model: no {self.model!r}; choose from {', '.join(MODELS)}, or write [[layers]]")

    @property
    def augments(self) -> bool:
        """Whether training images are changed at random."""
        return (self.flip, self.crop_area) != ("none", 1) or any(
            (self.shift, self.rotation, self.zoom, self.elastic, self.crop_padding, self.colour_jitter, self.cutout)
        )

    def measured(self, mean: Sequence[float], deviation: Sequence[float]) -> "Config":
        """This config with the mean and the deviation of the data's channels in each ``normalise`` layer without."""
        values = {"mean": list(mean), "deviation": list(deviation)}
        layers = [{**values, **layer} if layer.get("kind") == "normalise" else layer for layer in self.layers]
        return replace(self, layers=layers)

    def _check_source(self) -> None:
        """Check the options of a warm start."""
        sha256 = self.init_from_sha256
        if sha256 and not is_sha256(sha256):
            raise ConfigError(f"--init-from-sha256: expected 64 hexadecimal digits, not {sha256[:70]!r}")
        if sha256 and not self.init_from:
            raise ConfigError("--init-from-sha256: needs --init-from, whose weights it checks")

    def _check_monitor(self, metrics: Sequence[str]) -> None:
        """Check the options that judge by a metric; ``metrics`` are those of the loss."""
        if self.monitor not in (AUTO, *metrics):
            known = f"the loss {self.loss} has {', '.join(metrics)}"
            raise ConfigError(f"--monitor: no {self.monitor!r}; {known}; or {AUTO}")
        needs = {"--patience": self.patience > 0, "--schedule plateau": self.schedule == PLATEAU}
        for flag in needs:
            if needs[flag] and not self.validation:
                raise ConfigError(f"{flag}: needs --validation samples to judge by")

    @property
    def monitored(self) -> str:
        """The metric that chooses the best epoch: of ``monitor``."""
        first: str = self.make_loss().metrics[0]
        return first if self.monitor == AUTO else self.monitor

    def make_optimizer(self) -> Optimizer:
        """The optimizer with its options."""
        optimizer: Optimizer = self._make(OPTIMIZERS[self.optimizer])
        return optimizer

    def make_loss(self) -> Loss:
        """The loss with its options."""
        loss: Loss = self._make(LOSSES[self.loss])
        return loss

    def _make(self, kind: type[Any]) -> Any:
        return kind(**{each.name: self.parts[each.name] for each in options_of(kind)})

    def _complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the optimizer and of the loss, with defaults for those that are not given."""
        kinds = {f"optimizer {self.optimizer}": OPTIMIZERS[self.optimizer], f"loss {self.loss}": LOSSES[self.loss]}
        names = {title: [each.name for each in options_of(kind)] for title, kind in kinds.items()}
        defaults = {each.name: each.default for kind in kinds.values() for each in options_of(kind)}
        for key in given:
            if key not in defaults:
                has = "; ".join(f"the {title} has {', '.join(own) or 'none'}" for title, own in names.items())
                every = {**OPTIMIZERS, **LOSSES}
                of = [name for name, kind in every.items() if key in (each.name for each in options_of(kind))]
                belongs = f"an option of {', '.join(sorted(of))}, not" if of else "no option"
                raise ConfigError(f"{flag_of(key)}: {belongs} of this run: {has}")
        for key in defaults:
            if key in OWN_NAMES:
                raise ConfigError(f"{key}: every run has an option of this name; rename that of {' or '.join(names)}")
        values = {**defaults, **given}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """All values by name, the options of the optimizer and of the loss among them: the reverse of from_dict."""
        return {**{name: getattr(self, name) for name in OWN_NAMES}, **self.parts}

    def network(self, image_shape: Shape, classes: int) -> Network:
        """The network for images (H, W, C) and this number of classes.

        Raises:
            ConfigError: the layers do not fit each other, the images, the classes or the optimizer.
        """
        network = Network(image_shape, build(self.layers or MODELS[self.model], classes, self.dropout), self.memory)
        if network.classes != classes:
            raise ConfigError(
                f"the model has {network.classes} classes; the data has {classes}: give its last layer as many outputs"
            )
        check_settings(network, self.make_optimizer())
        return network


OWN_NAMES = [each.name for each in fields(Config) if each.name != "parts"]
"""The names of the values that every run has."""


def part_names() -> set[str]:
    """The names of the options of all optimizers and losses."""
    return {each.name for each in _part_options()}


def later_names() -> set[str]:
    """The names of the options that files of older versions lack."""
    return {each.name for each in [*options_of(Config), *_part_options()] if each.metadata["later"]}


def _part_options() -> list[Field[Any]]:
    return [each for kind in [*OPTIMIZERS.values(), *LOSSES.values()] for each in options_of(kind)]


def from_dict(values: Mapping[str, Any], where: str = "", whole: bool = False) -> Config:
    """The config of named values, with defaults for the others.

    Args:
        where: the start of the message of an error.
        whole: every value must be there, as in files that dpcnn has written, except those that old versions lack.

    Raises:
        ConfigError: an unknown key, or a wrong value.
    """
    try:
        check_imports(values.get("imports", []))
        for key in values:
            if key not in OWN_NAMES and key not in part_names():
                raise ConfigError(unknown_key(key, [*OWN_NAMES, *sorted(part_names())]))
        parts = {key: value for key, value in values.items() if key not in OWN_NAMES}
        config = Config(**{key: values[key] for key in values if key in OWN_NAMES}, parts=parts)
        missing = [key for key in config.as_dict() if key not in values and key not in later_names()]
        if whole and missing:
            raise ConfigError(f"{missing[0]} is missing")
        return config
    except ConfigError as error:
        raise type(error)(f"{where}{error}") from None
