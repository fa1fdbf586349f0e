"""A run's metrics as event files, which TensorBoard shows. tensorboardX is an extra, imported only for this."""

from collections.abc import Iterable
from pathlib import Path

from dpcnn.base.files import Folder
from dpcnn.errors import LaunchError, not_installed
from dpcnn.runs.events import PEAK_MEMORY, Event, metric_of
from dpcnn.runs.folder import TENSORBOARD


class TensorBoardWriter:
    """Writes lines of metrics.jsonl to event files: metrics of steps and epochs, rate and speed.

    Old event files of the folder are deleted, and all lines so far are written again: so a resumed
    run has each point once.

    Raises:
        LaunchError: the package tensorboardX is not installed.
    """

    def __init__(self, run: Path, events: Iterable[Event]) -> None:
        writer = writer_class()
        with Folder(run) as folder, folder.inside(TENSORBOARD) as own:
            for old in own.names():
                if old.startswith("events.out.tfevents."):
                    own.remove(old)
        self._writer = writer(logdir=str(run / TENSORBOARD))
        for event in events:
            self.event(event)

    def event(self, event: Event) -> None:
        """Add the values of a line; ``hash`` and ``end`` have none."""
        if event["event"] not in ("step", "epoch"):
            return
        for key, value in event.items():
            if metric := metric_of(key):
                kind = key.removesuffix(metric).removesuffix("_") or "step"
                self._writer.add_scalar(f"{metric}/{kind}", value, event["step"])
            elif key in ("learning_rate", "images_per_second", PEAK_MEMORY):
                self._writer.add_scalar(key, value, event["step"])
        self._writer.flush()


def writer_class() -> type:
    """The class that writes event files.

    Raises:
        LaunchError: the package tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise LaunchError(f"--tensorboard: {not_installed('tensorboardX', 'tensorboard')}") from None
    writer: type = SummaryWriter
    return writer
