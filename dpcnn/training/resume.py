"""The start of a run: a new one, or a checkpoint of a run that is resumed."""

from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Any

from dpcnn.base.options import flag_of, options_of
from dpcnn.config import Config, from_dict
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import read_manifest
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.flags import given, override
from dpcnn.optim.schedules import OVER_ALL_EPOCHS, PLATEAU
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import RUNS, RunFolder, dated, numerics_of
from dpcnn.runs.step_files import step_name
from dpcnn.training.warm_start import source_recipe

RECIPE = "simple-cnn"
BINDING = {"epochs": OVER_ALL_EPOCHS, "monitor": {PLATEAU}}
"""Options that may change when a run is resumed, except with these schedules."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: of the run.
        config: the options of the run that is resumed, or of the recipe of a new one, as a dict.
        resumes: whether a run is resumed.
        source: the checkpoint of ``--init-from`` that the recipe comes from, if any.
        path, fingerprint: of the checkpoint to continue from, if any: its path, and that of its numerics.
        checkpoint: this checkpoint, on rank 0.
    """

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False
    source: str = ""
    path: Path | None = None
    fingerprint: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None

    def shared(self, comm: SerialComm) -> "Start":
        """Rank 0's start on every rank of ``comm``, without the checkpoint itself."""
        values = {name: getattr(self, name) for name in ("config", "resumes", "source", "fingerprint")}
        folder, path, values = comm.broadcast_obj([str(self.folder.path), self.path and str(self.path), values])
        return self if comm.rank == 0 else Start(RunFolder(Path(folder)), path=path and Path(path), **values)


def find_start(options: Namespace) -> Start:
    """Find the start that the command line asks for, from the files on disk.

    Raises:
        CheckpointError: there is nothing to resume, or a file can't be used.
        ConfigError: ``--resume auto`` without ``--out``.
    """
    if options.resume == "auto" and not options.out:
        raise ConfigError("--resume auto: give the run's folder: --out")
    begun = options.resume != "auto" or RunFolder(Path(options.out)).config.exists()
    if options.resume is None or not begun:
        return _new_run(options)
    if options.resume and options.resume != "auto":
        return _from_checkpoint(Path(options.resume), Path(options.out) if options.out else None)
    folder = RunFolder(Path(options.out)) if options.out else newest_run()
    if not folder.config.exists() and not folder.newest():
        raise CheckpointError(f"{folder.path}: no run to resume: it has no {folder.config.name}")
    folder.check_idle()
    path = folder.newest()
    if path is None:
        return Start(folder, folder.read_config(), resumes=True)
    checkpoint = read(path)
    check_name(path, checkpoint)
    return _continuing(folder, path, checkpoint)


def check_name(path: Path, checkpoint: Checkpoint) -> None:
    """Make sure that a run's newest checkpoint has the name of its step.

    Raises:
        CheckpointError: it has another one.
    """
    if path.name != step_name(checkpoint.progress.step):
        raise CheckpointError(
            f"{path}: holds step {checkpoint.progress.step}, so its name is wrong; rename or delete it"
        )


def _continuing(folder: RunFolder, path: Path, checkpoint: Checkpoint) -> Start:
    options, numerics = checkpoint.config.as_dict(), checkpoint.fingerprint
    return Start(folder, options, resumes=True, path=path, fingerprint=numerics, checkpoint=checkpoint)


def _new_run(options: Namespace) -> Start:
    recipe, source = recipe_of(options), source_of(options)
    name = recipe.model if source else Path(options.recipe or RECIPE).stem
    return Start(RunFolder(Path(options.out or dated(name))), recipe.as_dict(), source=source)


def _from_checkpoint(path: Path, out: Path | None) -> Start:
    """Continue the run of a checkpoint, or start from the checkpoint in a new folder ``out``."""
    if RunFolder(path).config.exists():
        raise CheckpointError(f"{path}: is a folder, not a checkpoint; to continue its run: --resume --out {path}")
    checkpoint = read(path)
    home = RunFolder(path.resolve().parent.parent)
    folder = RunFolder(out) if out else home
    if folder.path.resolve() != home.path:
        folder.check_free()
    elif not home.config.exists():
        raise CheckpointError(f"{path}: does not lie in a run's folder; give a new --out")
    else:
        folder.check_idle()
        latest = home.newest()
        if latest and path.resolve().name != latest.name:
            raise CheckpointError(
                f"{path}: the run has continued to {latest.name}; to start again from here, give a new --out"
            )
        if latest:
            check_name(latest, checkpoint)
    return _continuing(folder, path, checkpoint)


def newest_run() -> RunFolder:
    """The run under runs/ that was started or resumed last.

    Raises:
        CheckpointError: there is none.
    """
    configs = [path for path in RUNS.glob("*/config.toml")]
    if not configs:
        raise CheckpointError(f"{RUNS}/: no run to resume; give --resume a checkpoint or --out a run's folder")
    return RunFolder(max(configs, key=lambda path: path.stat().st_mtime).parent)


def wanted_numerics(options: Namespace) -> str:
    """The numerics that a training's options ask for: typed, or of the run that is resumed, or of the new run's recipe.

    Raises:
        CheckpointError, ConfigError: there is no such run or recipe.
    """
    if "numerics" in options:
        return str(options.numerics)
    if options.resume not in (None, "", "auto"):
        return numerics_of(Path(options.resume))
    if options.resume is not None:
        folder = RunFolder(Path(options.out)) if options.out else newest_run()
        if options.resume != "auto" or folder.config.exists():
            return numerics_of(folder.path)
    source = source_of(options)
    return numerics_of(Path(source)) if source else read_recipe(options.recipe or RECIPE).numerics


def recipe_of(options: Namespace) -> Config:
    """The recipe of a new run: the one that is typed, or that of the checkpoint of ``--init-from``, or :data:`RECIPE`.

    Raises:
        CheckpointError, ConfigError: there is no such checkpoint or recipe.
    """
    source = source_of(options)
    return source_recipe(source) if source else read_recipe(options.recipe or RECIPE)


def source_of(options: Namespace) -> str:
    """The checkpoint of ``--init-from`` that gives the recipe, as no other one is typed; otherwise an empty string."""
    return "" if options.recipe else str(given(options).get("init_from", ""))


def choose_config(options: Namespace, start: Start) -> Config:
    """The recipe's options, or those of the run that is resumed, with the flags that were typed.

    Raises:
        ConfigError: a flag would change the result of a run that is resumed.
        DataError: there is no such data set.
    """
    if not start.resumes:
        recipe = from_dict(start.config)
        return with_cut(override(recipe, options), recipe, given(options))
    folder = str(start.folder.path)
    of_run = from_dict(start.config, f"{folder}: ")
    recipe = read_recipe(options.recipe) if options.recipe else of_run
    asked = as_begun(override(recipe, options), of_run)
    if asked.holdout != of_run.holdout:  # the same command has begun the run: the same rule applies
        asked = with_cut(asked, recipe, given(options))
    check_resumable(of_run, asked, folder)
    return asked


def as_begun(asked: Config, of_run: Config) -> Config:
    """The options ``asked`` for a run that is resumed, with what the run has filled in: the sha256 of its source, and
    the values of ``normalise``. Equal layers keep their name, which older versions chose in another way."""
    if not asked.init_from_sha256 and asked.init_from == of_run.init_from:
        asked = replace(asked, init_from_sha256=of_run.init_from_sha256)
    if len(asked.layers) == len(of_run.layers):
        layers = [measured_as(*pair) for pair in zip(asked.layers, of_run.layers, strict=True)]
        if layers and layers == of_run.layers:
            return replace(asked, layers=layers, model=of_run.model)
    return asked


def measured_as(layer: dict[str, Any], of_run: dict[str, Any]) -> dict[str, Any]:
    """A layer, with the values of that of the run which it lacks if both are ``normalise``."""
    if {layer.get("kind"), of_run.get("kind")} != {"normalise"}:
        return layer
    return {**{key: of_run[key] for key in ("mean", "deviation") if key in of_run}, **layer}


def check_resumable(of_run: Config, asked: Config, folder: str) -> None:
    """Make sure that a run can be resumed with these options.

    Raises:
        ConfigError: an option would change the result of the run.
    """
    before, after = of_run.as_dict(), asked.as_dict()
    free = {option.name for option in options_of(Config) if option.metadata["free"]}
    for name in [*before, *after]:
        was, now = before.get(name), after.get(name)
        bound = of_run.schedule in BINDING.get(name, ())
        if was != now and (bound or name not in free):
            why = f", as the schedule {of_run.schedule} depends on it" if bound else ""
            advice = f"give {flag_of(name)} {was}, or start a new run from its weights: --init-from {quote(folder)}"
            raise ConfigError(
                f"{flag_of(name)}: {folder} was started with {was}, and can't be resumed with {now}{why}; "
                f"{advice if bound else 'drop the flag or start a new run'}"
            )


def with_cut(config: Config, recipe: Config, typed: dict[str, Any]) -> Config:
    """A new run's config, with validation samples that suit its data.

    The last samples suit the data set that a recipe was made for. In any other data set, which may be in the
    order of classes, the seed draws the samples, unless the user decides otherwise.
    """
    if config.holdout != "last" or "holdout" in typed or config.data == recipe.data:
        return config
    if read_manifest(find_data(config.data)).name == recipe.data:
        return config
    default = Config()
    amount = typed.get("validation", default.validation)
    return replace(config, holdout=default.holdout, validation=amount)
