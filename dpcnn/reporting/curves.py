"""The curves of runs over their epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpcnn.reporting.figures import MOST_POINTS, new_figure, picture, plain, save
from dpcnn.runs.events import Event, evaluated, read_events

STYLES = ("o--", "s-", "^:")
NAMES = {"train": "training"}


@picture
def draw_curves(runs: Sequence[Path], stem: Path, narrow: bool = False) -> str:
    """Draw loss and accuracy of runs over their epochs, to STEM.png and STEM.svg; in a regression, the absolute error.

    With ``narrow``, loss is drawn above accuracy, otherwise beside it.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=5, height=7) if narrow else new_figure(width=10)
    loss, accuracy = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    worst, second = 1.0, "accuracy"
    for number, run in enumerate(runs):
        events = read_events(run / "metrics.jsonl")
        epochs = [event for event in events if event["event"] == "epoch"]
        if not epochs:
            return f"no curves drawn: {run} has not finished an epoch"
        steps_per_epoch = epochs[0]["step"]
        kinds = ["train", *evaluated(epochs[-1])]
        if number == 0 and "train_accuracy" not in epochs[-1]:
            second = "mae"
        worst = min([worst, *(e[f"{kind}_accuracy"] for kind in kinds for e in epochs if f"{kind}_accuracy" in e)])
        steps = thinned([event for event in events if event["event"] == "step"])
        epochs = thinned(epochs)
        label = f"{plain(run.name)}: " if len(runs) > 1 else ""
        of_steps = f"C{number}" if len(runs) > 1 else "grey"
        for axes, key in ((loss, "loss"), (accuracy, second)):
            look = {"color": of_steps, "alpha": 0.4, "lw": 1, "label": f"{label}single steps"}
            _draw_values(axes, steps, key, steps_per_epoch, "-", **look)
            for index, (kind, style) in enumerate(zip(kinds, STYLES, strict=False)):
                look = {"color": f"C{number if len(runs) > 1 else index}", "label": f"{label}{NAMES.get(kind, kind)}"}
                _draw_values(axes, epochs, f"{kind}_{key}", steps_per_epoch, style, **look)
    positive = all(y > 0 for line in loss.lines for y in line.get_ydata())
    loss.set(xlabel="" if narrow else "epoch", ylabel="loss", yscale="log" if positive else "linear", title="loss")
    title = {"mae": "mean absolute error"}.get(second, second)
    accuracy.set(xlabel="epoch", ylabel=title, title=title)
    if second == "accuracy":
        accuracy.set_ylim(max(0.0, 1 - 1.2 * (1 - worst) - 0.001), 1.0005)  # the first steps may lie below
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
    if len(runs) > 1:  # too many lines for a legend inside the axes
        figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    else:
        for axes in (loss, accuracy):
            if axes.lines:
                axes.legend()
    return save(figure, stem, "curves")


def _draw_values(axes: Any, events: list[Event], key: str, steps_per_epoch: int, style: str, **look: Any) -> None:
    """Draw the values of a key over the epochs, from the events that have it, if there are any."""
    if with_key := [event for event in events if key in event]:
        x, y = [event["step"] / steps_per_epoch for event in with_key], [event[key] for event in with_key]
        axes.plot(x, y, style, **look)


def thinned(events: list[Event]) -> list[Event]:
    """At most MOST_POINTS events, evenly spaced, with the last one: a picture can't show more."""
    every = -(-len(events) // MOST_POINTS)
    return events[::-1][::every][::-1] if events else []
