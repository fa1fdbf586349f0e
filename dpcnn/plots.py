"""Pictures of runs. Matplotlib is an extra, imported only when something is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpcnn.metrics import read_events

MISSING = "no curves drawn: matplotlib is not installed (pip install 'dpcnn[plot]')"


def draw_scaling(speeds: Mapping[str, Mapping[int, float]], stem: Path, log: bool = False) -> str:
    """Draw images a second over ranks, a line for each kind of scaling, to STEM.png and STEM.svg.

    With ``log``, both axes are logarithmic.

    Returns:
        A line that says what was drawn, or why not.
    """
    figure = new_figure(width=6)
    if figure is None:
        return MISSING
    axes = figure.subplots()
    for (kind, found), mark in zip(speeds.items(), "os^", strict=False):
        axes.plot(list(found), list(found.values()), f"{mark}-", label=kind)
    first = next(iter(speeds.values()))
    start = next(iter(first))
    axes.plot(
        list(first),
        [first[start] * ranks / start for ranks in first],
        ":",
        color="grey",
        label="as many times as ranks",
    )
    axes.set(xlabel="ranks", ylabel="images a second")
    if log:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set(ylim=(0, None), xticks=list(first))
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, stem)


def draw_curves(runs: Sequence[Path], stem: Path) -> str:
    """Draw loss and accuracy of runs over their epochs, to STEM.png and STEM.svg.

    Returns:
        A line that says what was drawn, or why not.
    """
    figure = new_figure(width=10)
    if figure is None:
        return MISSING
    loss, accuracy = figure.subplots(1, 2)
    worst = 1.0
    for number, run in enumerate(runs):
        events = read_events(run / "metrics.jsonl")
        epochs = [event for event in events if event["event"] == "epoch"]
        steps_per_epoch = epochs[0]["step"]
        worst = min(worst, epochs[-1]["train_accuracy"], epochs[-1]["validation_accuracy"])
        steps = [event for event in events if event["event"] == "step"]
        label = f"{run.name}: " if len(runs) > 1 else ""
        color, other = f"C{2 * number}", f"C{2 * number + 1}"
        for axes, key, train in ((loss, "loss", "train_loss"), (accuracy, "accuracy", "train_accuracy")):
            x = [event["step"] / steps_per_epoch for event in epochs]
            fine = [event["step"] / steps_per_epoch for event in steps]
            validation = [event[f"validation_{key}"] for event in epochs]
            axes.plot(
                fine, [event[key] for event in steps], color=color, alpha=0.25, lw=1, label=f"{label}single steps"
            )
            axes.plot(x, [event[train] for event in epochs], "o-", color=color, label=f"{label}training")
            axes.plot(x, validation, "s-", color=other, label=f"{label}validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy an image", yscale="log", title="loss")
    accuracy.set(xlabel="epoch", ylabel="share classified right", title="accuracy")
    accuracy.set_ylim(max(0.0, 1 - 8 * (1 - worst) - 0.001), 1.0005)  # the first steps may lie below
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.legend()
    return save(figure, stem)


def new_figure(width: float) -> Any:
    """A figure of that many inches, or None without Matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4), layout="constrained")


def save(figure: Any, stem: Path) -> str:
    """Write a figure, and say where."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return f"curves drawn: {' and '.join(map(str, paths))}"
