"""The last lines of a run: the table of its epochs, the curves, the results."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dpcnn.base.text import text
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import epoch_rows, evaluated
from dpcnn.training.trainer import Trainer

Draw = Callable[[Sequence[Path], Path], str]
"""Draws the curves of runs to files with this stem, and returns a line that says so."""


def finish(trainer: Trainer, reporter: Reporter, peak: float, draw: Draw | None) -> None:
    """Draw the curves unless ``draw`` is None, and print the table of epochs and the last line."""
    progress, folder = trainer.progress, trainer.run.path
    best, last, sha256 = progress.best(trainer.config.monitor), progress.epoch_events[-1], trainer.weights_sha256
    with trainer.writing("report"):
        if trainer.comm.rank == 0:
            reporter.say(text(*epoch_rows(progress.epoch_events)))
            if draw:
                reporter.say(draw([folder], folder / "curves"))
            seconds = sum(event["seconds"] for event in progress.epoch_events)
            speed = trainer.plan.images(progress.step) / max(seconds, 1e-3)  # the seconds are rounded to milliseconds
            results = [f"{kind} accuracy {last[f'{kind}_accuracy']:.4f}" for kind in evaluated(last) or ["train"]]
            if best and "validation_accuracy" in best:
                results[0] += f" (best {best['validation_accuracy']:.4f}, epoch {best['epoch']})"
            if deaths := [event for event in progress.events if event["event"] == "death"]:
                lost = sum(len(event["lost"]) for event in deaths)
                reporter.say(f"{lost} rank{'s' * (lost > 1)} died during the run; {deaths[-1]['ranks']} finished it")
            reporter.say(
                f"{', '.join(results)}, {progress.seconds:.1f} s, {speed:,.0f} images/s, "
                f"peak memory {peak:.0f} MB per rank, {folder}, weights {sha256}"
            )


def say_stopped(trainer: Trainer, reporter: Reporter) -> None:
    """Print the step at which a run was stopped, and the reason."""
    reasons = trainer.comm.allgather_obj(trainer.stop.reason)
    rank, why = next(((rank, why) for rank, why in enumerate(reasons) if why), (0, "by a rank that has died"))
    with trainer.writing("report"):
        reporter.say(
            f"stopped at step {trainer.progress.step}: {why} (rank {rank}); "
            f"continue with --resume --out {trainer.run.path}"
        )
