"""The progress of a run: steps, epochs, sums over samples, and its record so far."""

from dataclasses import dataclass, field, replace
from typing import Any

from dpcnn.base.fields import FieldError, Table
from dpcnn.errors import CheckpointError
from dpcnn.nn.metrics import METRICS
from dpcnn.runs.events import Event, parse_event


@dataclass(frozen=True)
class Metrics:
    """The summed loss of ``count`` samples, and the number that is classified right; None: they are not classified."""

    loss: float = 0.0
    correct: int | None = 0
    count: int = 0

    def __add__(self, other: "Metrics") -> "Metrics":
        correct = None if self.correct is None or other.correct is None else self.correct + other.correct
        return Metrics(self.loss + other.loss, correct, self.count + other.count)

    @property
    def mean_loss(self) -> float:
        return self.loss / self.count

    @property
    def accuracy(self) -> float | None:
        return None if self.correct is None else self.correct / self.count

    def named(self) -> dict[str, float]:
        """The mean loss, and the accuracy if there is one."""
        return {"loss": self.mean_loss} | ({} if self.accuracy is None else {"accuracy": self.accuracy})


@dataclass
class Progress:
    """The progress of a run; with the parameters and the optimizer's arrays, this is all of its state.

    Attributes:
        step: steps taken.
        epochs: epochs finished and recorded.
        metrics: of the training samples of the running epoch.
        epoch_seconds: spent on the running epoch.
        seconds: spent on steps and validation since the run began.
        events: the lines of metrics.jsonl so far.
    """

    step: int = 0
    epochs: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    events: list[Event] = field(default_factory=list)

    def copy(self) -> "Progress":
        """The progress as it is now; the copy does not change."""
        return replace(self, events=list(self.events))

    @classmethod
    def from_dict(cls, values: Any) -> "Progress":
        """The reverse of ``dataclasses.asdict``.

        Raises:
            FieldError: the values have wrong types, or contradict each other.
        """
        table = Table(values, "progress")
        table.only(["step", "epochs", "metrics", "epoch_seconds", "seconds", "events"])
        metrics = table.table("metrics")
        progress = cls(
            table.integer("step"),
            table.integer("epochs"),
            Metrics(
                metrics.number("loss"),
                None if metrics.value("correct") is None else metrics.integer("correct"),
                metrics.integer("count"),
            ),
            table.number("epoch_seconds", 0),
            table.number("seconds", 0),
            [parse_event(event, f"progress.events[{index}]") for index, event in enumerate(table.items("events"))],
        )
        finished = [event["epoch"] for event in progress.epoch_events]
        if len(finished) != progress.epochs or finished != list(range(1, progress.epochs + 1)):
            raise FieldError(f"progress: {progress.epochs} epochs, but events of {len(finished)}")
        if (progress.metrics.correct or 0) > progress.metrics.count:
            raise FieldError(
                f"progress.metrics: {progress.metrics.correct} of {progress.metrics.count} samples are correct"
            )
        if any(event.get("step", 0) > progress.step for event in progress.events):
            raise FieldError(f"progress: events of steps after step {progress.step}")
        return progress

    def check(self, steps_per_epoch: int) -> None:
        """Check the progress against the run that continues from it.

        Raises:
            CheckpointError: it cannot belong to that run.
        """
        begun = self.epochs - (self.step < self.epochs * steps_per_epoch)  # --max-steps may have cut the last short
        within = self.step - begun * steps_per_epoch
        late = [e for e in self.epoch_events if e["step"] > e["epoch"] * steps_per_epoch]
        nothing = within and not (self.metrics.count and self.epoch_seconds)
        if not 0 <= within <= steps_per_epoch or late or nothing:
            raise CheckpointError(
                f"the checkpoint's step {self.step} and epoch {self.epochs} are not of a run with {steps_per_epoch} "
                "steps in each epoch; resume from another one"
            )

    def reopen(self, steps_per_epoch: int, last_step: int) -> None:
        """Remove the record of an epoch that --max-steps had cut short, if the epoch now continues."""
        if self.step < min(self.epochs * steps_per_epoch, last_step):
            self.epochs -= 1
            self.events = [event for event in self.events if event is not self.epoch_events[-1]]
        self.events = [event for event in self.events if event["event"] != "end"]

    @property
    def epoch_events(self) -> list[Event]:
        return [event for event in self.events if event["event"] == "epoch"]

    def best(self, monitor: str) -> Event | None:
        """The best epoch so far by a metric of validation, the first of those with equal values; without validation,
        the last.

        Args:
            monitor: a name in :data:`dpcnn.nn.metrics.METRICS`.
        """
        every = self.epoch_events
        epochs = [event for event in every if f"validation_{monitor}" in event]
        if every and not epochs:
            return every[-1]
        return max(epochs, key=lambda event: merits(event, monitor), default=None)


def merits(event: Event, monitor: str) -> tuple[float, float]:
    """Two numbers that are higher for a better epoch.

    They are of the metric ``monitor``, and of the loss, which decides between equal values; if ``monitor`` is the loss,
    the accuracy decides.
    """
    second = "accuracy" if monitor == "loss" else "loss"
    first, other = (METRICS[name].merit(event.get(f"validation_{name}", 0.0)) for name in (monitor, second))
    return first, other
