"""The lines of a run's ``metrics.jsonl``, one JSON object each, and their table."""

from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

from dpcnn.base.fields import FieldError, Table, load_json, name
from dpcnn.base.files import MOST_JSON, MOST_TEXT, read_bytes
from dpcnn.errors import CheckpointError
from dpcnn.nn.metrics import METRICS

Event = dict[str, Any]

KINDS = ("validation", "test")
"""The evaluations that an epoch's event may contain besides training: NAME_METRIC, as in validation_loss."""

PEAK_MEMORY = "peak_memory_mb"
"""The key of rank 0's largest memory so far, in the event of an epoch."""

MEASURED = ("seconds", "images_per_second", PEAK_MEMORY)
"""The keys of values that are measured: they differ from one run to the next, and all others are the same."""

BRIEF = ("loss", "accuracy", "mae", "r2")
"""The metrics that lines and tables for people contain, if there are such; metrics.jsonl contains all."""


def parse_event(value: Any, where: str) -> Event:
    """Check that a line of metrics.jsonl has the keys, types and ranges that :mod:`dpcnn.training.trainer` writes.

    Raises:
        FieldError: the line is not an event of a run.
    """
    line = Table(value, where)
    kind = line.name("event")
    measured: list[str] = []
    if kind == "step":
        integers, floats = ["step", "epoch"], ["learning_rate"]
        measured = ["loss", *present(line, "", ["accuracy"])]
    elif kind == "epoch":
        integers, floats = ["epoch", "step"], ["learning_rate", "seconds", "images_per_second"]
        floats += present(line, "", [PEAK_MEMORY])  # runs of older versions lack it
        measured = ["train_loss", *present(line, "train_", ["accuracy"])]
        for split in evaluated(line):
            measured += [f"{split}_loss", *present(line, f"{split}_", [name for name in METRICS if name != "loss"])]
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
        integers, floats, measured = ["steps"], ["seconds"], present(line, "best_validation_", METRICS)
        line.sha256("weights_sha256")
    else:
        raise FieldError(f"{where}: no event {kind!r}")
    for key in integers:
        line.integer(key, 1)
    for key in floats:
        line.number(key, 0, 1e300)
    for key in measured:
        line.number(key, *bounds(key))
    more = {"hash": ["parameters"], "death": ["step", "ranks", "lost"], "end": ["weights_sha256"]}.get(kind, [])
    line.only(["event", *integers, *floats, *measured, *more])
    event: Event = value
    return event


def present(keys: Container[Any], start: str, names: Iterable[str]) -> list[str]:
    """Those of the keys START + NAME that exist."""
    return [f"{start}{name}" for name in names if f"{start}{name}" in keys]


def metric_of(key: str) -> str:
    """The name of the metric in the key of a line, such as "f1" of "best_validation_f1"; empty if it is none."""
    names = [name for name in METRICS if key == name or key.endswith(f"_{name}")]
    return max(names, key=len, default="")


def bounds(key: str) -> tuple[float, float]:
    """The bounds of the metric in the key of a line."""
    metric = METRICS[metric_of(key)]
    return max(metric.least, -1e300), min(metric.most, 1e300)


def evaluated(event: Container[Any]) -> list[str]:
    """Those of KINDS that the event of an epoch contains."""
    return [kind for kind in KINDS if f"{kind}_loss" in event]


def brief(event: Event, kind: str, more: Sequence[str] = ()) -> list[str]:
    """The metrics of an evaluation, or of "train", that people see: those of BRIEF, and of ``more``."""
    return [name for name in dict.fromkeys([*BRIEF, *more]) if f"{kind}_{name}" in event]


def headline(event: Event, kind: str) -> str:
    """The most important metrics of an evaluation, or of "train", as text: those of BRIEF, the loss only if alone."""
    names = brief(event, kind)[1:] or ["loss"]
    return ", ".join(f"{kind} {name} {event[f'{kind}_{name}']:.4f}" for name in names)


def epoch_rows(events: Sequence[Event], monitor: str = "loss") -> tuple[list[str], list[list[str]]]:
    """The table of a run's epochs: its header, and a row for each of ``events``, at least one.

    A cell is empty if an epoch lacks an evaluation that the last epoch has. The columns are the metrics of
    :func:`brief`, ``monitor`` among them.
    """
    titles, columns = [], []
    for kind in ["train", *evaluated(events[-1])]:
        names = brief(events[-1], kind, [monitor])
        titles += [f"{kind[:5]}{'.' * (len(kind) > 5)} {names[0]}", *names[1:]]
        columns += [f"{kind}_{name}" for name in names]
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
