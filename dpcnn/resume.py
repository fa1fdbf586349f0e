"""Where a run begins: anew, or at a checkpoint of a run that is resumed."""

import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpcnn.checkpoint import Checkpoint, read
from dpcnn.cli import override
from dpcnn.config import Config, from_dict, read_recipe
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.optim import OVER_ALL_EPOCHS
from dpcnn.run_folder import RunFolder

RUNS = Path("runs")
RECIPE = "simple-cnn"


@dataclass
class Start:
    """Where a run begins, as rank 0 finds it; the other ranks have an empty one.

    Attributes:
        folder: of the run.
        path, checkpoint: what to go on from, if anything.
        config: of the run that is resumed, as a dict, if any.
    """

    folder: RunFolder = field(default_factory=lambda: RunFolder(Path()))
    path: Path | None = None
    checkpoint: Checkpoint | None = None
    config: dict[str, Any] | None = None


def find_start(options: Namespace) -> Start:
    """Read off the disk where the command line says to begin.

    Raises:
        CheckpointError: there is nothing to resume, or it can't be used.
    """
    if options.resume == "auto" and not options.out:
        raise ConfigError("--resume auto: give the run's folder: --out")
    begun = options.resume != "auto" or RunFolder(Path(options.out)).config.exists()
    if options.resume is None or not begun:
        recipe = Path(options.recipe or RECIPE).stem
        return Start(RunFolder(Path(options.out or RUNS / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")))
    if options.resume and options.resume != "auto":
        path = Path(options.resume)
        home = RunFolder(path.resolve().parent.parent)
        folder = RunFolder(Path(options.out)) if options.out else home
        latest = home.newest()
        if folder.path.resolve() == home.path and latest and path.resolve().name < latest.name:
            raise CheckpointError(
                f"{path}: the run has gone on to {latest.name}; to go another way from here, give a new --out"
            )
        if folder.path.resolve() != home.path:
            folder.check_free()
    else:
        folder = RunFolder(Path(options.out)) if options.out else newest_run()
        found = folder.newest()
        if found is None:
            return Start(folder, config=folder.read_config())
        path = found
    checkpoint = read(path)
    return Start(folder, path, checkpoint, asdict(checkpoint.config))


def newest_run() -> RunFolder:
    """The run under runs/ that was begun or resumed last.

    Raises:
        CheckpointError: there is none.
    """
    found = [path for path in RUNS.glob("*/config.toml")]
    if not found:
        raise CheckpointError(f"{RUNS}/: no run to resume; give --resume a checkpoint or --out a run's folder")
    return RunFolder(max(found, key=lambda path: path.stat().st_mtime).parent)


def choose_config(options: Namespace, stored: dict[str, Any] | None, place: str) -> Config:
    """The recipe's options, or those of the run that is resumed, with the flags that were typed.

    Raises:
        ConfigError: a flag would change the result of a run that is resumed.
    """
    if stored is None:
        return override(read_recipe(options.recipe or RECIPE), options)
    of_run = from_dict(stored, f"{place}: ")
    asked = override(read_recipe(options.recipe) if options.recipe else of_run, options)
    for option in fields(Config):
        was, now = getattr(of_run, option.name), getattr(asked, option.name)
        free = option.metadata["free"] and not (option.name == "epochs" and of_run.schedule in OVER_ALL_EPOCHS)
        if was != now and not free:
            flag = "--" + option.name.replace("_", "-")
            raise ConfigError(
                f"{flag}: {place} was begun with {was}, and can't be resumed with {now}; "
                "drop the flag or begin a new run"
            )
    return asked
