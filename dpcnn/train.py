"""Train a network: mpirun -n 4 python -m dpcnn.train"""

import resource
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dpcnn import __version__
from dpcnn.checkpoint import Checkpoint, read, weights_sha256
from dpcnn.cli import DONE, RESUMABLE, Parser, add_config_flags, override, parse, run
from dpcnn.config import Config, from_dict, read_recipe
from dpcnn.data.samples import find_data, load
from dpcnn.data.shards import Manifest
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.fingerprint import fingerprint
from dpcnn.nn.models import MODELS
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import Alone
from dpcnn.plots import draw_curves
from dpcnn.report import Console, Report, epoch_table
from dpcnn.run_folder import RunFolder
from dpcnn.trainer import Trainer

RUNS = Path("runs")
RECIPE = "simple-cnn"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: train(comm, argv))


def train(comm: Alone, argv: Sequence[str] | None) -> int:
    """Train, on every rank of ``comm``, as the command line says."""
    report = Console() if comm.rank == 0 else Report()
    with comm.together():
        options = parse(_parser(), argv, comm)
    trainer = set_up(comm, options, report)
    report.begin(trainer.cursor, trainer.config.epochs, trainer.images_left())
    try:
        finished = trainer.fit()
    finally:
        report.end()
    return finish(trainer, report, finished)


def _parser() -> Parser:
    parser = Parser(prog="dpcnn.train", description=__doc__)
    parser.add_argument("--recipe", metavar="NAME|FILE", help="options to start from (default simple-cnn)")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default runs/RECIPE-DATE-TIME)")
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT",
        nargs="?",
        const="",
        help="go on with a run: from this checkpoint, or from the last one of --out or of the newest run",
    )
    add_config_flags(parser)
    return parser


def set_up(comm: Alone, options: Namespace, report: Report) -> Trainer:
    """Everything before the first step: options, data, network, state, and last the run's folder.

    Nothing is written before all that the user gave has been looked at.
    """
    start = Start()
    with comm.together():
        if comm.rank == 0:
            start = find_start(options)
    place, stored = comm.broadcast_obj([str(start.folder.path), start.config])
    with comm.together():
        config = choose_config(options, stored, place)
        data = find_data(config.data)
    manifest, samples = load(data, "train", comm)
    with comm.together():
        if config.validation >= len(samples):
            raise ConfigError(f"--validation: must be below {len(samples)}, the training samples of {data}")
        if start.checkpoint and start.checkpoint.data != manifest.checksum:
            raise CheckpointError(f"{start.path}: made with other data than {data}; give --data the one it knows")
    network = Network(manifest.image_shape, MODELS[config.model](manifest.classes))
    trainer = Trainer(comm, config, network, samples, manifest.checksum, start.folder, report)
    if comm.broadcast_obj(start.checkpoint is not None):
        trainer.restore(start.checkpoint)
    with comm.together():
        if isinstance(report, Console):
            start.folder.open(config, trainer.cursor, fresh=options.resume is None)
            report.log_to(start.folder.log)
            for line in opening_lines(trainer, manifest, start):
                report.say(line)
    return trainer


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
    if options.resume is None:
        recipe = Path(options.recipe or RECIPE).stem
        return Start(RunFolder(Path(options.out or RUNS / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}")))
    if options.resume:
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
        if was != now and not option.metadata["free"]:
            flag = "--" + option.name.replace("_", "-")
            raise ConfigError(
                f"{flag}: {place} was begun with {was}, and can't be resumed with {now}; "
                "drop the flag or begin a new run"
            )
    return asked


def opening_lines(trainer: Trainer, manifest: Manifest, start: Start) -> list[str]:
    """What a run says of itself before it trains."""
    config, comm, cursor = trainer.config, trainer.comm, trainer.cursor
    numerics = fingerprint()
    lines = [
        f"dpcnn {__version__}: {config.model}, {trainer.network.size:,} parameters, on {manifest.name}: "
        f"{trainer.training:,} images to train, {config.validation:,} to validate",
        f"{comm.size} rank{'s' * (comm.size > 1)}, {comm.library}; NumPy {numerics['numpy']}, {numerics['blas']}",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps; batch {config.batch} in microbatches of "
        f"{config.microbatch}; {config.optimizer}, rate {config.lr:g}; seed {config.seed}; {config.exchange} exchange",
        f"run folder: {start.folder.path}",
    ]
    if start.path:
        lines.append(f"resuming from {start.path.name}: epoch {cursor.epochs + 1}, step {cursor.step}")
        if start.checkpoint and start.checkpoint.fingerprint != numerics:
            lines.append("the numerics differ from those of the checkpoint: the last bits may too")
    elif start.config is not None:
        lines.append("no checkpoint yet: starting from step 0")
    if config.exchange == "allreduce":
        lines.append("allreduce: the last bits of the result depend on the number of ranks")
    return lines


def finish(trainer: Trainer, report: Report, finished: bool) -> int:
    """Record the end, draw the curves, print the table and the last line."""
    comm, cursor, config = trainer.comm, trainer.cursor, trainer.config
    if not finished:
        report.say(f"stopped at step {cursor.step}; go on with --resume --out {trainer.run.path}")
        return RESUMABLE
    peak = max(comm.allgather_obj(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    best = cursor.best
    assert best is not None, "a finished run has an epoch"
    sha256 = weights_sha256(trainer.vector)
    trainer.record(
        {
            "event": "end",
            "steps": cursor.step,
            "seconds": round(cursor.seconds, 3),
            "weights_sha256": sha256,
            "best_validation_accuracy": best["validation_accuracy"],
        }
    )
    with comm.together():
        if comm.rank == 0:
            report.say(epoch_table(cursor.epoch_events))
            report.say(draw_curves([trainer.run.path], trainer.run.path / "curves"))
            images = cursor.step * config.batch
            last = cursor.epoch_events[-1]
            report.say(
                f"validation accuracy {last['validation_accuracy']:.4f} (best {best['validation_accuracy']:.4f}, epoch "
                f"{best['epoch']}), {cursor.seconds:.1f} s, {images / cursor.seconds:,.0f} images/s, peak memory "
                f"{peak:.0f} MB a rank, {trainer.run.path}, weights {sha256}"
            )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
