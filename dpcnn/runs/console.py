"""The output of a run: a bar on a terminal and in a notebook, plain lines elsewhere, all lines in log.txt."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dpcnn.base.files import Folder
from dpcnn.base.text import count_of
from dpcnn.errors import printable
from dpcnn.parallel.terminal import image_bar, in_notebook, open_terminal, terminal
from dpcnn.runs.events import Event, brief, evaluated
from dpcnn.runs.progress import Metrics, Progress

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_SECONDS = 10.0  # between the plain lines of a running epoch
BAR = "{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {postfix[0]}, {remaining} left"


class Reporter:
    """Prints nothing.

    Attributes:
        size: bytes of the log file after the last action that has been committed.
        written: the same after what this action has written so far.
    """

    size = written = 0

    def log_to(self, path: Path) -> None:
        """From here on, write every line to this file too."""

    def logged(self) -> int:
        """The size of the log file in bytes, on the rank that prints; 0 on the others."""
        return 0

    def commit(self) -> None:
        """All ranks have done the action."""
        self.size = self.written

    def retry(self) -> None:
        """The action is repeated: do not print again the lines that this rank has printed in it."""
        self.written = self.size

    def take_over(self) -> None:
        """Print from now on for a rank that has died, and remove its lines of the unfinished action from the log."""

    def say(self, line: str) -> None:
        """Print a line."""

    def warn(self, line: str) -> None:
        """Print a line that belongs to no action, and is not printed again if one is repeated."""

    def begin(self, progress: Progress, epochs: int, images: int) -> None:
        """Training begins; ``images`` is the number of images to come."""

    def step(self, progress: Progress, metrics: Metrics, rate: float) -> None:
        """A step is done; ``metrics`` are those of the step."""

    def epoch(self, event: Event) -> None:
        """An epoch is done; ``event`` is its line of metrics.jsonl. This is called on every rank, like ``step``."""

    def event(self, event: Event) -> None:
        """A line of metrics.jsonl has been recorded."""

    def end(self) -> None:
        """Training has ended, with or without an error."""


class Console(Reporter):
    """Plain lines to stdout, or lines and a bar to the terminal; lines to a log file. Every rank has one.

    The bar goes to the terminal itself: Open MPI's mpirun passes on whole lines only.
    """

    def __init__(self, speaks: Callable[[], bool]) -> None:
        """``speaks`` returns whether this rank prints now. The other ranks count lines and images too."""
        self._speaks = speaks
        self._log: Path | None = None
        self._terminal: TextIO | None = None
        self._out: TextIO | None = None
        self._bar: tqdm[Any] | None = None
        self._begun = False  # training, but no bar has been tried yet
        self._epochs = self._done = self._images = 0
        self._fresh = self._to_skip = 0  # lines printed in this action; lines to skip in its repetition
        self._started = self._said = time.monotonic()

    def log_to(self, path: Path) -> None:
        self._log = path

    def commit(self) -> None:
        super().commit()
        self._fresh = self._to_skip = 0

    def retry(self) -> None:
        super().retry()
        self._to_skip = self._fresh

    def take_over(self) -> None:
        self._fresh = self._to_skip = 0
        if self._log and self._log.exists():
            with Folder(self._log.parent) as folder, folder.appending(self._log.name) as file:
                file.truncate(self.size)

    def logged(self) -> int:
        return self._log.stat().st_size if self._log and self._speaks() and self._log.exists() else 0

    def say(self, line: str) -> None:
        if not self._speaks():
            return
        if self._to_skip:
            self._to_skip -= 1
            return
        self._fresh += 1
        self._tell(line)

    def warn(self, line: str) -> None:
        if self._speaks():
            self._tell(line)

    def _tell(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        line = printable(line, keep="\n")
        self._print(line)
        if self._bar is not None:
            self._bar.refresh()
        if self._log and self._log.parent.is_dir():  # else the run has not begun
            with Folder(self._log.parent) as folder, folder.appending(self._log.name) as file:
                file.write(f"{line}\n".encode())

    def _print(self, line: str) -> None:
        self._open()
        try:
            print(line, file=self._out, flush=True)
        except OSError:  # the terminal is gone, or nobody reads: the run and the log continue
            self._bar, self._terminal, self._out = None, None, sys.stdout

    def _open(self) -> None:
        """Find out where the output goes, when this rank prints for the first time."""
        if self._out is None and in_notebook():
            self._terminal = self._out = sys.stdout
        elif self._out is None:
            self._terminal = open_terminal(terminal(2))
            self._out = self._terminal if self._terminal and terminal(1) == self._terminal.name else sys.stdout

    def begin(self, progress: Progress, epochs: int, images: int) -> None:
        self._epochs, self._images, self._begun = epochs, images, True
        self._started = self._said = time.monotonic()

    def _show_bar(self, done: int) -> None:
        """Show a bar, if there is a terminal or a notebook; ``done`` images by a rank 0 that has died."""
        self._open()
        if self._terminal is not None:
            self._bar = image_bar(self._terminal, self._images, done, BAR)

    def step(self, progress: Progress, metrics: Metrics, rate: float) -> None:
        self._done += metrics.count
        if not self._speaks():
            return
        if self._begun:
            self._begun = False
            self._show_bar(self._done - metrics.count)
        seen = [f"{name} {value:.4f}" for name, value in progress.metrics.named().items()]
        facts = ", ".join([*seen, f"rate {rate:.2g}"])
        if self._bar is not None:
            self._bar.set_description_str(self._epoch(progress.epochs + 1), refresh=False)
            self._bar.postfix[0] = facts
            try:
                self._bar.update(metrics.count)
            except OSError:
                self._bar = None
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            speed = self._done / (self._said - self._started)
            where = f"{self._epoch(progress.epochs + 1)}, step {progress.step}"
            self._print(f"{where}: {facts}; {speed:,.0f} images/s")

    def event(self, event: Event) -> None:
        if event["event"] == "death":
            who, left = f"{', '.join(event['lost'])} died after step {event['step']}", event["ranks"]
            continues = f"{count_of(left, 'rank')} continue{'s' * (left == 1)}"
            self.say(f"{who}: {continues}, after {event['seconds']:.2f} s")
        if event["event"] != "epoch":
            return
        names = {**{kind: kind for kind in evaluated(event)}, "training": "train"}
        results = [f"{name} {_results(event, kind)}" for name, kind in names.items()]
        speed = f"{event['images_per_second']:,.0f} images/s, {event['seconds']:.1f} s"
        self.say(f"{self._epoch(event['epoch'])}: {'; '.join([*results, speed])}")

    def _epoch(self, number: int) -> str:
        return f"epoch {number}/{self._epochs}" if self._epochs else f"epoch {number}"  # 0: a loop without begin()

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _results(event: Event, kind: str) -> str:
    """The metrics of an evaluation in the line of an epoch; the loss is the last."""
    first, *others = brief(event, kind)
    return ", ".join(f"{name} {event[f'{kind}_{name}']:.4f}" for name in [*others, first])
