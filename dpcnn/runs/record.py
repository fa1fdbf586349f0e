"""A run's record: the lines of metrics.jsonl and their display."""

from collections.abc import Callable

from dpcnn.config import Config
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Progress
from dpcnn.runs.tensorboard import TensorBoardWriter


class Record:
    """A run's record. Every rank has one, and rank 0 writes it.

    The recorded events are part of the progress, which is the same on all ranks. If rank 0 dies, the next rank takes
    over: it writes the files again and continues, so no line is missing and none is repeated.

    Attributes:
        shown: the number of events that have been written and shown; the same on all ranks.
        epochs: the number of epochs that have been shown; a run that goes back to a checkpoint does not repeat them.
    """

    def __init__(self, run: RunFolder, reporter: Reporter, tensorboard: bool = False) -> None:
        self._run, self._reporter, self._tensorboard = run, reporter, tensorboard
        self.shown = self.epochs = 0
        self._written: int | None = None  # events that this rank has written; None: it has not been rank 0
        self._board: Callable[[Event], None] = lambda event: None

    @property
    def leads(self) -> bool:
        """Whether this rank, as rank 0, has begun to write."""
        return self._written is not None

    def begin(self, progress: Progress) -> None:
        """Rank 0 has opened the run's folder, with the events so far."""
        self._written = len(progress.events)
        if self._tensorboard:
            self._board = TensorBoardWriter(self._run.path, progress.events).event

    def lead(self, config: Config, progress: Progress) -> None:
        """Take over as rank 0, if the rank that was rank 0 has died."""
        if self._written is not None:
            return
        self._reporter.take_over()
        if warning := self._run.take_over(config, progress):
            self._reporter.say(warning)
        self.begin(progress)
        for event in progress.events[self.shown :]:
            self._show(event)

    def write(self, progress: Progress) -> None:
        """Write and show, as rank 0, the events that are not written yet."""
        for event in progress.events[self._written :]:
            self._run.append_event(event)
            self._show(event)
            self._board(event)
        self._written = len(progress.events)

    def _show(self, event: Event) -> None:
        if event["event"] != "epoch" or event["epoch"] > self.epochs:
            self._reporter.event(event)

    def commit(self, progress: Progress) -> None:
        """All ranks know that the events so far have been written and shown."""
        self.shown, self.epochs = len(progress.events), max(self.epochs, progress.epochs)

    def restart(self, progress: Progress) -> None:
        """The run continues from this state, whose events have been shown; discard later events."""
        self.shown, self._written = len(progress.events), None
