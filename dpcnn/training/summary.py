"""The last lines of a run: the table of its epochs, the curves, the results."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dpcnn.base.text import text
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import Event, epoch_rows, evaluated, headline
from dpcnn.training.trainer import Trainer

Draw = Callable[[Sequence[Path], Path], str]
"""Draws the curves of runs to files with this stem, and returns a line that says so."""


def finish(trainer: Trainer, reporter: Reporter, peak: float, draw: Draw | None) -> None:
    """Draw the curves unless ``draw`` is None, and print the table of epochs and the last line."""
    progress, folder = trainer.progress, trainer.run.path
    monitor = trainer.config.monitored
    best, last, sha256 = progress.best(monitor), progress.epoch_events[-1], trainer.weights_sha256
    with trainer.writing("report"):
        if trainer.comm.rank == 0:
            reporter.say(text(*epoch_rows(progress.epoch_events, monitor)))
            if draw:
                reporter.say(draw([folder], folder / "curves"))
            seconds = sum(event["seconds"] for event in progress.epoch_events)
            speed = trainer.plan.images(progress.step) / max(seconds, 1e-3)  # the seconds are rounded to milliseconds
            results = [headline(last, kind) for kind in evaluated(last) or ["train"]]
            if best and f"validation_{monitor}" in best:
                results[0] += f" (best {shown_best(best, monitor)})"
            if deaths := [event for event in progress.events if event["event"] == "death"]:
                lost = sum(len(event["lost"]) for event in deaths)
                reporter.say(f"{lost} rank{'s' * (lost > 1)} died during the run; {deaths[-1]['ranks']} finished it")
            reporter.say(
                f"{', '.join(results)}, {progress.seconds:.1f} s, {speed:,.0f} images/s, "
                f"peak memory {peak:.0f} MB per rank, {folder}, weights {sha256}"
            )


def shown_best(best: Event, monitor: str) -> str:
    """The best epoch's accuracy, or its monitored metric if there is no accuracy, and its number."""
    value = best.get("validation_accuracy")
    figure = f"{monitor} {best[f'validation_{monitor}']:.4f}" if value is None else f"{value:.4f}"
    return f"{figure}, epoch {best['epoch']}"


def say_stopped(trainer: Trainer, reporter: Reporter) -> None:
    """Print the step at which a run was stopped, and the reason."""
    reasons = trainer.comm.allgather_obj(trainer.stop.reason)
    rank, why = next(((rank, why) for rank, why in enumerate(reasons) if why), (0, "by a rank that has died"))
    with trainer.writing("report"):
        reporter.say(
            f"stopped at step {trainer.progress.step}: {why} (rank {rank}); "
            f"continue with --resume --out {trainer.run.path}"
        )
