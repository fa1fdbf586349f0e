"""The last lines of a run: the table of its epochs, the curves, the results."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote

from dpcnn.base.options import flag_of
from dpcnn.base.text import count_of, text
from dpcnn.parallel.launch import usual_launcher
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import Event, epoch_rows, evaluated, headline
from dpcnn.runs.progress import Progress
from dpcnn.training.early_stopping import out_of_patience
from dpcnn.training.resume import Start
from dpcnn.training.trainer import Trainer

Draw = Callable[[Sequence[Path], Path], str]
"""Draws the curves of runs to files with this stem, and returns a line that says so."""


def finish(trainer: Trainer, reporter: Reporter, peak: float, draw: Draw | None) -> None:
    """Draw the curves unless ``draw`` is None, and print the table of epochs and the last line."""
    progress, folder = trainer.progress, trainer.run.path
    monitor, sha256 = trainer.config.monitored, trainer.weights_sha256
    with trainer.writing("report"):
        if trainer.comm.rank == 0:
            reporter.say(text(*epoch_rows(progress.epoch_events, monitor)))
            if draw:
                reporter.say(draw([folder], folder / "curves"))
            seconds = sum(event["seconds"] for event in progress.epoch_events)
            speed = trainer.plan.images(progress.step) / max(seconds, 1e-3)  # the seconds are rounded to milliseconds
            if deaths := [event for event in progress.events if event["event"] == "death"]:
                lost = sum(len(event["lost"]) for event in deaths)
                reporter.say(f"{count_of(lost, 'rank')} died during the run; {deaths[-1]['ranks']} finished it")
            reporter.say(
                f"{outcome(progress, monitor)}, {progress.seconds:.1f} s, {speed:,.0f} images/s, "
                f"peak memory {peak:.0f} MB per rank, {folder}, weights {sha256}"
            )


def outcome(progress: Progress, monitor: str) -> str:
    """The results of the last epoch, and of the best one if there are validation samples."""
    best, last = progress.best(monitor), progress.epoch_events[-1]
    results = [headline(last, kind) for kind in evaluated(last) or ["train"]]
    if best and f"validation_{monitor}" in best:
        results[0] += f" (best {shown_best(best, monitor)})"
    return ", ".join(results)


def shown_best(best: Event, monitor: str) -> str:
    """The best epoch's accuracy, or its monitored metric if there is no accuracy, and its number."""
    value = best.get("validation_accuracy")
    figure = f"{monitor} {best[f'validation_{monitor}']:.4f}" if value is None else f"{value:.4f}"
    return f"{figure}, epoch {best['epoch']}"


def say_stopped(trainer: Trainer, reporter: Reporter) -> None:
    """Print the best results so far, the step at which the run was stopped, the reason, and how to continue."""
    reasons = trainer.comm.allgather_obj(trainer.stop.reason)
    rank, why = next(((rank, why) for rank, why in enumerate(reasons) if why), (0, "by a rank that has died"))
    ranks = f"{usual_launcher()} -n {trainer.comm.size} " if trainer.comm.size > 1 else ""
    best = trainer.progress.best(trainer.config.monitored)
    with trainer.writing("report"):
        if best and evaluated(best):
            reporter.say(f"best so far: {headline(best, evaluated(best)[0])}, epoch {best['epoch']}")
        reporter.say(
            f"stopped at step {trainer.progress.step}: {why} (rank {rank}); "
            f"continue with: {ranks}dpcnn train --resume --out {quote(str(trainer.run.path))}"
        )


OF_STEPS = "test", "checkpoint_every", "drift_check_every", "keep"
"""Options that may change when a run is resumed, and that matter only if it takes steps."""


def already_complete(trainer: Trainer, start: Start, reporter: Reporter, trace: bool) -> bool:
    """Whether a run that is resumed has ended with these options; if so, print a line.

    A run that was killed between its last checkpoint and its last lines has not ended. The line names the options that
    have no effect; they are no error, because the command of a batch job is repeated until the run is complete.

    Args:
        trace: whether the user wants a trace.
    """
    comm, progress, config, folder = trainer.comm, trainer.progress, trainer.config, str(trainer.run.path)
    epochs = count_of(progress.epochs, "epoch")
    over = progress.epochs >= trainer.plan.last_epoch or out_of_patience(progress, config)
    complete: bool = comm.broadcast_obj(bool(start.path and over) and trainer.run.ended())
    flags = [flag_of(name) for name in OF_STEPS if getattr(config, name) != start.config.get(name)]
    flags += ["--trace"] * trace
    idle = f"without a step, {', '.join(flags)} {'has' if len(flags) == 1 else 'have'} no effect; " if flags else ""
    with comm.fail_together(), suppress(OSError):  # the folder may be read-only: it then keeps its log
        if complete:
            reporter.say(
                f"{folder}: already complete, {epochs}, {outcome(progress, config.monitored)}; {idle}"
                f"to train on from its weights, start a new run: --init-from {quote(folder)}"
            )
    return complete
