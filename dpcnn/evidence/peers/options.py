"""The options of a configuration that the peers have too."""

from dpcnn.base.options import flag_of, options_of
from dpcnn.config import Config
from dpcnn.data.augment import AUGMENTATIONS
from dpcnn.errors import ConfigError
from dpcnn.nn.models import MODELS, UPDATE
from dpcnn.optim.schedules import PLATEAU

THEIRS = {
    *("label_smoothing", "beta1", "beta2", "epsilon", "weight_decay", "momentum", "decay"),
    *("model", "layers", "dropout", "init", "init_std", "loss", "optimizer", "lr", "schedule", "gamma", "warmup"),
    *("max_grad_norm", "ema_decay", "batch", "seed"),
    *AUGMENTATIONS,  # by dpcnn's code
}
"""The options that the peers have too."""

OF_NO_STEP = {
    *("imports", "data", "validation", "holdout", "test", "epochs", "max_steps", "monitor", "patience"),
    *("microbatch", "exchange", "memory", "numerics", "checkpoint_every", "drift_check_every"),
    "keep",
}
"""The options that decide which samples there are, or how dpcnn runs, but not what a step of the peer computes."""


def check_options(config: Config, peer: str) -> None:
    """Make sure that a peer, "PyTorch" or "JAX", has all options that the configuration uses.

    Raises:
        ConfigError: another option differs from its default, or a layer has settings of its own.
    """
    if config.schedule == PLATEAU:
        raise ConfigError(f"--schedule {PLATEAU}: {peer}'s side has no such schedule; choose another one")
    if any(key in layer for layer in config.layers or MODELS[config.model] for key in UPDATE):
        raise ConfigError(f"{peer}'s side has no layers with {', '.join(UPDATE)}; remove these keys")
    kinds = (Config, type(config.make_optimizer()), type(config.make_loss()))
    defaults = {each.name: each.default for kind in kinds for each in options_of(kind)}
    for name, value in config.as_dict().items():
        default = defaults.get(name, type(value)())
        if name not in THEIRS | OF_NO_STEP and value != (list(default) if isinstance(default, tuple) else default):
            raise ConfigError(f"{flag_of(name)}: {peer}'s side has no such option; leave it at its default")
