"""What a run says: a bar on a terminal, plain lines elsewhere, all lines in log.txt."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpcnn.metrics import Cursor, Event, Tally
from dpcnn.parallel.launch import launcher

LINE_SECONDS = 10.0  # between the plain lines of a running epoch


class Report:
    """Says nothing: the report of every rank but 0."""

    def say(self, line: str) -> None:
        """A line for people."""

    def begin(self, cursor: Cursor, epochs: int, images: int) -> None:
        """Training begins at the cursor; ``images`` are those of the whole run."""

    def step(self, cursor: Cursor, tally: Tally, rate: float) -> None:
        """A step is done; ``tally`` is its own."""

    def epoch(self, event: Event) -> None:
        """An epoch is done and recorded."""

    def end(self) -> None:
        """Training is over, well or not."""


class Console(Report):
    """The report of rank 0: to stdout, or around a progress bar on stderr, and to a log file."""

    def __init__(self) -> None:
        self._log: Path | None = None
        self._terminal = terminal()
        self._bar: tqdm[Any] | None = None
        self._epochs = self._images = self._done = 0
        self._started = self._said = time.monotonic()

    def log_to(self, path: Path) -> None:
        """From here on, write every line to this file too."""
        self._log = path

    def say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.refresh()
        if self._log:
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def begin(self, cursor: Cursor, epochs: int, images: int) -> None:
        self._epochs, self._images = epochs, images
        self._started = self._said = time.monotonic()
        if self._terminal is not None:
            self._bar = tqdm(
                total=images,
                unit=" images",
                unit_scale=True,
                mininterval=0.2,
                ncols=width(self._terminal),
                file=sys.stderr,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {rate_fmt}, {postfix[0]}, {remaining} left",
                postfix=[""],
            )

    def step(self, cursor: Cursor, tally: Tally, rate: float) -> None:
        self._done += tally.count
        seen = cursor.tally
        facts = f"loss {seen.mean_loss:.4f}, accuracy {seen.accuracy:.4f}, rate {rate:.2g}"
        if self._bar is not None:
            self._bar.set_description_str(f"epoch {cursor.epochs + 1}/{self._epochs}", refresh=False)
            self._bar.postfix[0] = facts
            self._bar.update(tally.count)
        elif time.monotonic() - self._said > LINE_SECONDS:
            self._said = time.monotonic()
            speed = self._done / (self._said - self._started)
            where = f"epoch {cursor.epochs + 1}/{self._epochs}, step {cursor.step}"
            print(f"{where}: {facts}; {speed:,.0f} images/s", flush=True)

    def epoch(self, event: Event) -> None:
        self.say(
            f"epoch {event['epoch']}/{self._epochs}: validation accuracy {event['validation_accuracy']:.4f}, "
            f"loss {event['validation_loss']:.4f}; training accuracy {event['train_accuracy']:.4f}, "
            f"loss {event['train_loss']:.4f}; {event['images_per_second']:,.0f} images/s, {event['seconds']:.1f} s"
        )

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned to the right, under a line."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def epoch_table(events: Sequence[Event]) -> str:
    """The epochs of a run, a line each."""
    header = ("epoch", "step", "rate", "train loss", "accuracy", "valid. loss", "accuracy", "seconds", "images/s")
    rows = [
        (
            str(event["epoch"]),
            str(event["step"]),
            f"{event['learning_rate']:.2g}",
            f"{event['train_loss']:.4f}",
            f"{event['train_accuracy']:.4f}",
            f"{event['validation_loss']:.4f}",
            f"{event['validation_accuracy']:.4f}",
            f"{event['seconds']:.1f}",
            f"{event['images_per_second']:,.0f}",
        )
        for event in events
    ]
    return table(header, rows)


def terminal() -> str | None:
    """The terminal that stderr ends in, as a path, or None where that is a file or a pipe.

    An MPI launcher takes its ranks' output through pipes (or gives them a terminal of its own), so
    what counts is where the launcher's own stderr goes.
    """
    above = launcher()
    try:
        path = os.readlink(f"/proc/{above[0] if above else 'self'}/fd/2")
    except OSError:
        return None
    return path if path.startswith(("/dev/pts/", "/dev/tty")) else None


def width(path: str) -> int:
    """The columns of a terminal."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return 100
    try:
        return os.get_terminal_size(descriptor).columns or 100
    except OSError:
        return 100
    finally:
        os.close(descriptor)
