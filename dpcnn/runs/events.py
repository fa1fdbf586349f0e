"""The lines of a run's ``metrics.jsonl``, one JSON object each, and their table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpcnn.base.fields import FieldError, Table, load_json, name
from dpcnn.base.files import MOST_JSON, MOST_TEXT, read_bytes
from dpcnn.errors import CheckpointError

Event = dict[str, Any]

KINDS = ("validation", "test")
"""The evaluations that an epoch's event may contain besides training: NAME_loss and NAME_accuracy."""


MOST_LOSS = 1e38
"""The largest loss of a sample, which is a float32."""


def parse_event(value: Any, where: str) -> Event:
    """Check that a line of metrics.jsonl has the keys, types and ranges that :mod:`dpcnn.training.trainer` writes.

    Raises:
        FieldError: the line is not an event of a run.
    """
    line = Table(value, where)
    kind = line.name("event")
    if kind == "step":
        integers, floats = ["step", "epoch"], ["loss", "accuracy", "learning_rate"]
    elif kind == "epoch":
        evaluations = [split for split in KINDS if f"{split}_loss" in line or f"{split}_accuracy" in line]
        measured = [f"{split}_{what}" for split in ("train", *evaluations) for what in ("loss", "accuracy")]
        integers, floats = ["epoch", "step"], [*measured, "learning_rate", "seconds", "images_per_second"]
    elif kind == "hash":
        integers, floats = ["step"], []
        hashes = line.table("parameters")
        for parameter in hashes:
            hashes.name(parameter)
    elif kind == "death":
        integers, floats = [], ["seconds"]
        line.integer("step")
        line.integer("ranks", 1)
        for index, lost in enumerate(line.items("lost")):
            name(lost, f"{where}.lost[{index}]")
    elif kind == "end":
        integers, floats = ["steps"], ["seconds", *(key for key in ["best_validation_accuracy"] if key in line)]
        line.sha256("weights_sha256")
    else:
        raise FieldError(f"{where}: no event {kind!r}")
    for key in integers:
        line.integer(key, 1)
    for key in floats:
        line.number(
            key, *((0, 1) if key.endswith("accuracy") else (-MOST_LOSS, MOST_LOSS) if "loss" in key else (0, 1e300))
        )
    more = {"hash": ["parameters"], "death": ["step", "ranks", "lost"], "end": ["weights_sha256"]}.get(kind, [])
    line.only(["event", *integers, *floats, *more])
    event: Event = value
    return event


def evaluated(event: Event) -> list[str]:
    """Those of KINDS that the event of an epoch contains."""
    return [kind for kind in KINDS if f"{kind}_accuracy" in event]


def epoch_rows(events: Sequence[Event]) -> tuple[list[str], list[list[str]]]:
    """The table of a run's epochs: its header, and a row for each of ``events``, at least one.

    A cell is empty if an epoch lacks an evaluation that the last epoch has.
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


def read_events(path: Path) -> list[Event]:
    """The lines of metrics.jsonl, except an incomplete one at the end, which a run may be writing.

    Raises:
        CheckpointError: the file can't be read, or a line is not an event of a run.
    """
    try:
        lines = read_bytes(path, MOST_TEXT).split(b"\n")[:-1]
        if any(len(line) > MOST_JSON for line in lines):
            raise FieldError(f"a line of more than {MOST_JSON:,} bytes")
        return [parse_event(load_json(line), f"line {number}") for number, line in enumerate(lines, 1)]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give a run's folder") from None
    except FieldError as error:
        raise CheckpointError(f"{path}: not a run's metrics ({error}); --resume writes it again") from None
