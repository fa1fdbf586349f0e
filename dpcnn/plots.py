"""Pictures of runs. Matplotlib is an extra, imported only when something is drawn."""

from collections.abc import Sequence
from pathlib import Path

from dpcnn.metrics import read_events


def draw_curves(runs: Sequence[Path], stem: Path) -> str:
    """Draw loss and accuracy of runs over their epochs, to STEM.png and STEM.svg.

    Returns:
        A line that says what was drawn, or why not.
    """
    try:
        import matplotlib
    except ImportError:
        return "no curves drawn: matplotlib is not installed (pip install 'dpcnn[plot]')"
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
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
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        figure.savefig(path, dpi=150)
    return f"curves drawn: {' and '.join(map(str, paths))}"
