"""A run's record: the lines of metrics.jsonl, and all that is shown of them."""

from collections.abc import Callable

from dpcnn.config import Config
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Progress
from dpcnn.runs.tensorboard import TensorBoardWriter


class Record:
    """A run's record. Every rank has one, and rank 0 writes it.

    What has been recorded is the same on all ranks, in the cursor. So a rank that becomes rank 0, because all before it
    have died, writes the files anew and goes on: no line is missing, and none is there twice.

    Attributes:
        shown: how many events have been written and shown, as all ranks know.
        epochs: how many epochs have been shown; a run that goes back to a checkpoint does not show them again.
    """

    def __init__(self, run: RunFolder, reporter: Reporter, tensorboard: bool = False) -> None:
        self._run, self._reporter, self._tensorboard = run, reporter, tensorboard
        self.shown = self.epochs = 0
        self._written: int | None = None  # events, by this rank; None: it has not been rank 0
        self._board: Callable[[Event], None] = lambda event: None

    def begin(self, progress: Progress) -> None:
        """Rank 0 has opened the run's folder, with the events so far."""
        self._written = len(progress.events)
        if self._tensorboard:
            self._board = TensorBoardWriter(self._run.path, progress.events).event

    def lead(self, config: Config, progress: Progress) -> None:
        """Take over as rank 0, if another rank, which has died, was it so far."""
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
        """The run goes on from this state, whose events have been shown: later ones are taken back."""
        self.shown, self._written = len(progress.events), None
