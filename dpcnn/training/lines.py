"""The lines that a training adds to the record of its run: see :mod:`dpcnn.runs.events`."""

from collections.abc import Mapping

from dpcnn.base.machine import peak_memory
from dpcnn.parallel.comm import Death
from dpcnn.runs.events import PEAK_MEMORY, Event
from dpcnn.runs.progress import Metrics, Progress


def step_line(progress: Progress, metrics: Metrics, lr: float) -> Event:
    """A step that is done, with its metrics."""
    return {
        "event": "step",
        "step": progress.step,
        "epoch": progress.epochs + 1,
        **metrics.named(),
        "learning_rate": lr,
    }


def epoch_line(progress: Progress, evaluations: Event, lr: float) -> Event:
    """An epoch that is done, with its evaluations."""
    return {
        "event": "epoch",
        "epoch": progress.epochs,
        "step": progress.step,
        **{f"train_{name}": value for name, value in progress.metrics.named().items()},
        **evaluations,
        "learning_rate": lr,
        "seconds": round(progress.epoch_seconds, 3),
        "images_per_second": round(progress.metrics.count / progress.epoch_seconds, 1),
        PEAK_MEMORY: round(peak_memory(), 1),
    }


def death_line(progress: Progress, death: Death, hosts: Mapping[int, str]) -> Event:
    """The death of ranks; ``hosts`` has the name of each rank's node."""
    return {
        "event": "death",
        "step": progress.step,
        "lost": [f"rank {number} on {hosts.get(number, 'an unknown host')}" for number in death.ranks],
        "ranks": death.left,
        "seconds": round(death.seconds, 3),
    }


def end_line(progress: Progress, monitor: str, weights_sha256: str) -> Event:
    """The end of the run, with the best epoch's validation metrics ``monitor`` and accuracy."""
    best = progress.best(monitor) or {}
    keys = dict.fromkeys(f"validation_{name}" for name in (monitor, "accuracy"))
    return {
        "event": "end",
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "weights_sha256": weights_sha256,
        **{f"best_{key}": best[key] for key in keys if key in best},
    }
