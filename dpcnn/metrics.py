"""Sums and counts, and the run's record of them: ``metrics.jsonl``, one JSON object a line."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpcnn.errors import CheckpointError
from dpcnn.fields import FieldError, Table, load_json
from dpcnn.files import MOST_TEXT, read_bytes

Event = dict[str, Any]

KINDS = ("validation", "test")
"""What an epoch's event may tell of, besides training: NAME_loss and NAME_accuracy."""


def parse_event(value: Any, where: str) -> Event:
    """A line of metrics.jsonl that was read, every value of it as :mod:`dpcnn.trainer` writes it.

    Raises:
        FieldError: it is something else.
    """
    told = Table(value, where)
    kind = told.name("event")
    if kind == "step":
        whole, broken = ["step", "epoch"], ["loss", "accuracy", "learning_rate"]
    elif kind == "epoch":
        evaluations = [name for name in KINDS if f"{name}_loss" in told or f"{name}_accuracy" in told]
        measured = [f"{name}_{what}" for name in ("train", *evaluations) for what in ("loss", "accuracy")]
        whole, broken = ["epoch", "step"], [*measured, "learning_rate", "seconds", "images_per_second"]
    elif kind == "hash":
        whole, broken = ["step"], []
        hashes = told.table("parameters")
        for name in hashes:
            hashes.name(name)
    elif kind == "end":
        whole, broken = ["steps"], ["seconds", *(key for key in ["best_validation_accuracy"] if key in told)]
        told.sha256("weights_sha256")
    else:
        raise FieldError(f"{where}: no event {kind!r}")
    for key in whole:
        told.integer(key)
    for key in broken:
        told.number(key)
    more = {"hash": ["parameters"], "end": ["weights_sha256"]}.get(kind, [])
    told.only(["event", *whole, *broken, *more])
    event: Event = value
    return event


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
    def from_dict(cls, values: Any) -> "Cursor":
        """The reverse of ``dataclasses.asdict``.

        Raises:
            FieldError: the values are not a cursor's, or contradict each other.
        """
        told = Table(values, "cursor")
        told.only(["step", "epochs", "tally", "epoch_seconds", "seconds", "events"])
        tally = told.table("tally")
        cursor = cls(
            told.integer("step"),
            told.integer("epochs"),
            Tally(tally.number("loss"), tally.integer("correct"), tally.integer("count")),
            told.number("epoch_seconds", 0),
            told.number("seconds", 0),
            [parse_event(event, f"cursor.events[{place}]") for place, event in enumerate(told.items("events"))],
        )
        finished = [event["epoch"] for event in cursor.epoch_events]
        if len(finished) != cursor.epochs or finished != list(range(1, cursor.epochs + 1)):
            raise FieldError(f"cursor: {cursor.epochs} epochs, but events of {len(finished)}")
        if cursor.tally.correct > cursor.tally.count:
            raise FieldError(f"cursor.tally: {cursor.tally.correct} of {cursor.tally.count} samples are correct")
        if any(event.get("step", 0) > cursor.step for event in cursor.events):
            raise FieldError(f"cursor: events of steps after step {cursor.step}")
        return cursor

    def check(self, steps_per_epoch: int) -> None:
        """Hold the cursor against the run that is to go on from it.

        Raises:
            CheckpointError: it can't be of that run.
        """
        begun = self.epochs - (self.step < self.epochs * steps_per_epoch)  # --max-steps may have cut the last short
        within = self.step - begun * steps_per_epoch
        late = [e for e in self.epoch_events if e["step"] > e["epoch"] * steps_per_epoch]
        nothing = within and not (self.tally.count and self.epoch_seconds)
        if not 0 <= within <= steps_per_epoch or late or nothing:
            raise CheckpointError(
                f"the checkpoint's step {self.step} and epoch {self.epochs} are not of a run with {steps_per_epoch} "
                "steps in each epoch; resume from another one"
            )

    def reopen(self, steps_per_epoch: int, last_step: int) -> None:
        """Take an epoch's record back if --max-steps had cut that epoch short and it now goes on."""
        if self.step < min(self.epochs * steps_per_epoch, last_step):
            self.epochs -= 1
            self.events = [event for event in self.events if event is not self.epoch_events[-1]]
        self.events = [event for event in self.events if event["event"] != "end"]

    @property
    def epoch_events(self) -> list[Event]:
        return [event for event in self.events if event["event"] == "epoch"]

    def best(self, monitor: str) -> Event | None:
        """The best epoch so far; without validation, the last.

        Args:
            monitor: "accuracy": the highest on the validation samples, of equals the one with the lowest loss;
                "loss": the lowest, of equals the one with the highest accuracy. Of equals in both, the first.
        """
        epochs = self.epoch_events
        if epochs and "validation_accuracy" not in epochs[0]:
            return epochs[-1]

        def rank(event: Event) -> tuple[float, float]:
            accuracy, loss = event["validation_accuracy"], event["validation_loss"]
            return (accuracy, -loss) if monitor == "accuracy" else (-loss, accuracy)

        return max(epochs, key=rank, default=None)


def read_events(path: Path) -> list[Event]:
    """The lines of metrics.jsonl, but for one at its end that is only begun: a run may be writing it.

    Raises:
        CheckpointError: it can't be read, or holds something else.
    """
    try:
        lines = read_bytes(path, MOST_TEXT).split(b"\n")[:-1]
        return [parse_event(load_json(line), f"line {number}") for number, line in enumerate(lines, 1)]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give a run's folder") from None
    except FieldError as error:
        raise CheckpointError(f"{path}: not a run's metrics ({error}); --resume writes it anew") from None
