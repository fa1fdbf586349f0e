"""Pictures of the learning rate and the peak memory of a run over its epochs."""

from collections.abc import Sequence
from pathlib import Path

from dpcnn.reporting.curves import thinned
from dpcnn.reporting.figures import new_figure, picture, save
from dpcnn.runs.events import PEAK_MEMORY, Event


@picture
def draw_timeline(events: Sequence[Event], key: str, label: str, stem: Path) -> str:
    """Draw a value of a run's events over the epochs, to STEM.png and STEM.svg.

    Args:
        key: of the value in the events of steps and epochs.
        label: of its axis.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    epochs = [event for event in events if event["event"] == "epoch"]
    with_value = thinned([event for event in events if key in event])
    figure = new_figure(width=5, height=2.4)
    if not epochs or not with_value:
        return f"no {label} drawn: the run has recorded none"
    axes = figure.subplots()
    x = [event["step"] / epochs[0]["step"] for event in with_value]
    axes.plot(x, [event[key] for event in with_value], marker="." if len(x) < 50 else "")
    axes.set(xlabel="epoch", ylabel=label, xlim=(0, None), ylim=(0, None))
    axes.grid(alpha=0.3)
    return save(figure, stem, label)


def draw_timelines(events: Sequence[Event], out: Path, kind: str = "") -> list[str]:
    """Draw the learning rate and the memory into a folder, as ``rate`` and ``memory``.

    Args:
        kind: the ending of the only files; empty: .png and .svg.

    Returns:
        A line per picture, with its files or the reason why it was not drawn.
    """
    return [
        draw_timeline(events, "learning_rate", "learning rate", out / f"rate{kind}"),
        draw_timeline(events, PEAK_MEMORY, "peak memory in MB", out / f"memory{kind}"),
    ]
