"""Sums and counts, and the run's record of them: ``metrics.jsonl``, one JSON object a line."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpcnn.errors import CheckpointError

Event = dict[str, Any]

KINDS = ("validation", "test")
"""What an epoch's event may tell of, besides training: NAME_loss and NAME_accuracy."""


def evaluated(event: Event) -> list[str]:
    """Those of KINDS that the event of an epoch tells of."""
    return [kind for kind in KINDS if f"{kind}_accuracy" in event]


def epoch_rows(events: Sequence[Event]) -> tuple[list[str], list[list[str]]]:
    """The table of a run's epochs: its header, and a row for each of ``events``, of which there is one at least.

    A cell is empty where an epoch's event does not tell of what the last one tells of.
    """
    kinds = ["train", *evaluated(events[-1])]
    titles = [title for kind in kinds for title in (f"{kind[:5]}{'.' * (len(kind) > 5)} loss", "accuracy")]
    columns = [f"{kind}_{what}" for kind in kinds for what in ("loss", "accuracy")]
    rows = [
        [
            str(event["epoch"]),
            str(event["step"]),
            f"{event['learning_rate']:.2g}",
            *(f"{event[column]:.4f}" if column in event else "" for column in columns),
            f"{event['seconds']:.1f}",
            f"{event['images_per_second']:,.0f}",
        ]
        for event in events
    ]
    return ["epoch", "step", "rate", *titles, "seconds", "images/s"], rows


@dataclass(frozen=True)
class Tally:
    """The summed loss of ``count`` samples, and how many of them were classified right."""

    loss: float = 0.0
    correct: int = 0
    count: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.loss + other.loss, self.correct + other.correct, self.count + other.count)

    @property
    def mean_loss(self) -> float:
        return self.loss / self.count

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


def total(losses: Iterable[float], corrects: Iterable[float], count: int) -> Tally:
    """A tally of many parts: ``math.fsum`` is exact, so their grouping by ranks doesn't matter."""
    return Tally(math.fsum(losses), int(sum(corrects)), count)


@dataclass
class Cursor:
    """Where a run is; together with the parameters and the optimizer's vectors, all of its state.

    Attributes:
        step: steps taken.
        epochs: epochs finished and recorded.
        tally: of the training samples of the running epoch.
        epoch_seconds: spent on the running epoch.
        seconds: spent on steps and validation since the run began.
        events: the lines of metrics.jsonl so far.
    """

    step: int = 0
    epochs: int = 0
    tally: Tally = field(default_factory=Tally)
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Cursor":
        """The reverse of ``dataclasses.asdict``.

        Raises:
            TypeError, ValueError: the values are not a cursor's.
        """
        cursor = cls(**{**values, "tally": Tally(**values["tally"])})
        numbers = [cursor.step, cursor.epochs, cursor.tally.correct, cursor.tally.count]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"not a cursor: {values}")
        if not all(isinstance(event["event"], str) for event in cursor.events):
            raise ValueError("not a list of events")
        return cursor

    def reopen(self, steps_per_epoch: int, last_step: int) -> None:
        """Take an epoch's record back if --max-steps had cut that epoch short and it now goes on."""
        if self.step < min(self.epochs * steps_per_epoch, last_step):
            self.epochs -= 1
            self.events = [event for event in self.events if event is not self.epoch_events[-1]]
        self.events = [event for event in self.events if event["event"] != "end"]

    @property
    def epoch_events(self) -> list[Event]:
        return [event for event in self.events if event["event"] == "epoch"]

    @property
    def best(self) -> Event | None:
        """The epoch with the highest validation accuracy, of equals the first; without validation, the last."""
        epochs = self.epoch_events
        if epochs and "validation_accuracy" not in epochs[0]:
            return epochs[-1]
        return max(epochs, key=lambda event: event["validation_accuracy"], default=None)


def read_events(path: Path) -> list[Event]:
    """The lines of metrics.jsonl, but for one at its end that is only begun: a run may be writing it.

    Raises:
        CheckpointError: it can't be read, or holds something else.
    """
    try:
        return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a run's metrics ({error}); --resume writes it anew") from None
