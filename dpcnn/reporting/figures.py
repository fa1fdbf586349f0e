"""Pictures of runs. Matplotlib is an extra, imported only when something is drawn."""

import io
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.files import write_file
from dpcnn.data.classes import Names
from dpcnn.data.shards import MNIST
from dpcnn.errors import printable
from dpcnn.runs.events import Event, evaluated, read_events
from dpcnn.training.examination import Examination

STYLES = ("o--", "s-", "^:")
NAMES = {"train": "training"}
MOST_PICTURES, MOST_NUMBERED, MOST_POINTS, MOST_LETTERS = 64, 40, 5_000, 14
"""The most filters or maps in a picture, classes in a confusion matrix with counts, points of a curve, and
characters of a class's name."""

MISSING = "nothing drawn: matplotlib is not installed (pip install 'dpcnn[plot]')"


def draw_scaling(speeds: Mapping[str, Mapping[int, float]], stem: Path, log: bool = False) -> str:
    """Draw images per second over ranks, with a line for each kind of scaling, to STEM.png and STEM.svg.

    With ``log``, both axes are logarithmic.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=6)
    if figure is None:
        return MISSING
    axes = figure.subplots()
    for (kind, rates), mark in zip(speeds.items(), "os^", strict=False):
        axes.plot(list(rates), list(rates.values()), f"{mark}-", label=kind)
    first = next(iter(speeds.values()))
    start = next(iter(first))
    axes.plot(
        list(first),
        [first[start] * ranks / start for ranks in first],
        ":",
        color="grey",
        label="linear speed-up",
    )
    axes.set(xlabel="ranks", ylabel="images per second")
    if log:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set(ylim=(0, None), xticks=list(first))
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, stem, "scaling")


def draw_curves(runs: Sequence[Path], stem: Path, narrow: bool = False) -> str:
    """Draw loss and accuracy of runs over their epochs, to STEM.png and STEM.svg; in a regression, the absolute error.

    With ``narrow``, loss is drawn above accuracy, otherwise beside it.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=5, height=7) if narrow else new_figure(width=10)
    if figure is None:
        return MISSING
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
            if fine := [event for event in steps if key in event]:
                x, y = [event["step"] / steps_per_epoch for event in fine], [event[key] for event in fine]
                axes.plot(x, y, color=of_steps, alpha=0.4, lw=1, label=f"{label}single steps")
            for index, (kind, style) in enumerate(zip(kinds, STYLES, strict=False)):
                color = f"C{number if len(runs) > 1 else index}"
                rows = [event for event in epochs if f"{kind}_{key}" in event]
                if not rows:
                    continue
                x, y = ([event["step"] / steps_per_epoch for event in rows], [event[f"{kind}_{key}"] for event in rows])
                axes.plot(x, y, style, color=color, label=f"{label}{NAMES.get(kind, kind)}")
    positive = all(y > 0 for line in loss.lines for y in line.get_ydata())
    loss.set(xlabel="epoch", ylabel="loss", yscale="log" if positive else "linear", title="loss")
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


def thinned(events: list[Event]) -> list[Event]:
    """At most MOST_POINTS events, evenly spaced, with the last one: a picture can't show more."""
    every = -(-len(events) // MOST_POINTS)
    return events[::-1][::every][::-1] if events else []


def plain(text: str) -> str:
    """Text for a picture, with dollars escaped, so that they do not enclose a formula."""
    return printable(text).replace("$", r"\$")


def short(name: str) -> str:
    """The name of a class for a picture: its beginning if it is long."""
    return plain(name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…")


def draw_confusion(confusion: Array, names: Names, stem: Path) -> str:
    """Draw a confusion matrix to STEM.png and STEM.svg.

    Only mistakes are shaded. The diagonal has the counts of the samples that are classified right.

    Args:
        confusion: (classes, classes) counts: by row the true class, by column the predicted one.
        names: of the classes.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=6, height=5.5)
    if figure is None:
        return MISSING
    axes = figure.subplots()
    mistakes = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    most = max(1, mistakes.max())
    axes.imshow(mistakes, cmap="Greys", vmin=0, vmax=most)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(confusion) <= MOST_NUMBERED:
        labels = [short(name) for name in names]
        axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if mistakes[row, column] > most / 2 else "black"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, count or "", ha="center", va="center", color=color, weight=weight)
    return save(figure, stem, "confusion matrix")


def draw_mistakes(examination: Examination, most: int, stem: Path, columns: int = 8) -> str:
    """Draw the images with the highest losses among those classified wrong, to STEM.png and STEM.svg.

    Args:
        most: the largest number of pictures.
        columns: the number of images side by side.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    answers, names = examination.answers, examination.class_names
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    worst = wrong[np.argsort(-answers.losses[wrong], kind="stable")][:most]
    if not len(worst):
        return "no mistakes drawn: there are none"
    rows = -(-len(worst) // columns)
    figure = new_figure(width=1.1 * columns, height=1.3 * rows)
    if figure is None:
        return MISSING
    images, _ = examination.samples.take(examination.indices[worst])
    shades = shades_of(examination.resize)
    lines = "\n" if max(map(len, names)) > 2 else " "
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, number, image in zip(grid.flat, worst, images, strict=False):
        _show(axes, image, shades)
        right, predicted = short(names[answers.labels[number]]), short(names[answers.predicted[number]])
        axes.set_title(f"{right}{lines}as {predicted}", fontsize=9 if lines == " " else 7)
    return save(figure, stem, "worst mistakes")


def shades_of(resize: str) -> str:
    """The colour map of grey images: dark ink on white for MNIST's characters, which are light on dark."""
    return "Greys" if resize == MNIST else "gray"


def _show(axes: Any, image: Array, shades: str) -> None:
    """Show an image (H, W, C) of values 0..255: in colour, or the mean of its channels."""
    axes.axis("off")
    axes.imshow(
        image.astype(np.uint8) if image.shape[-1] in (3, 4) else image.mean(axis=-1), cmap=shades, vmin=0, vmax=255
    )


def draw_filters(before: Array, after: Array, stem: Path) -> str:
    """Draw a layer's filters before and after training, each in its own shades, to STEM.png and STEM.svg.

    Args:
        before, after: (h, w, F), or in colour (h, w, F, 3).

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    before, after = before[:, :, :MOST_PICTURES], after[:, :, :MOST_PICTURES]
    columns = min(before.shape[2], 5)
    rows = -(-before.shape[2] // columns)
    figure = new_figure(width=1 + 1.6 * columns, height=0.5 + 0.8 * rows)
    if figure is None:
        return MISSING
    _before_and_after(figure.subfigures(1, 2), before, after, columns)
    return save(figure, stem, "filters")


def draw_maps(image: Array, before: Array, after: Array, shades: str, stem: Path) -> str:
    """Draw an image, and a layer's output for it before and after training, to STEM.png and STEM.svg.

    Args:
        image: (H, W, C), uint8.
        before, after: (h, w, F).
        shades: the colour map of a grey image, see :func:`shades_of`.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    before, after = before[:, :, :MOST_PICTURES], after[:, :, :MOST_PICTURES]
    columns = min(before.shape[2], 4)
    rows = -(-before.shape[2] // columns)
    figure = new_figure(width=2 + 1.8 * columns, height=0.5 + 0.9 * rows)
    if figure is None:
        return MISSING
    parts = figure.subfigures(1, 3, width_ratios=(2, 0.9 * columns, 0.9 * columns))
    parts[0].suptitle("image")
    _show(parts[0].subplots(), image, shades)
    _before_and_after(parts[1:], before, after, columns)
    return save(figure, stem, "feature maps")


def _before_and_after(figures: Sequence[Any], before: Array, after: Array, columns: int) -> None:
    """Draw pictures (h, w, n) before and after training, each in a figure."""
    for figure, pictures, title in zip(figures, (before, after), ("before", "after"), strict=True):
        figure.suptitle(f"{title} training")
        _grid(figure, pictures, columns)


def _grid(figure: Any, pictures: Array, columns: int) -> None:
    """Draw pictures side by side, each scaled from its minimum to its maximum.

    Args:
        pictures: (h, w, n), from white to black; or in colour (h, w, n, 3).
    """
    h, w, n, *colours = pictures.shape
    rows, gap = -(-n // columns), max(1, h // 12)
    whole = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, *colours), 1.0 if colours else 0.0)
    for number in range(n):
        picture = pictures[:, :, number] - pictures[:, :, number].min()
        top, left = number // columns * (h + gap), number % columns * (w + gap)
        whole[top : top + h, left : left + w] = picture / (picture.max() or 1)
    axes = figure.subplots()
    axes.axis("off")
    axes.imshow(whole, cmap="Greys", vmin=0, vmax=1)


def new_figure(width: float, height: float = 4) -> Any:
    """A figure of ``width`` by ``height`` inches, or None if Matplotlib is not installed."""
    os.environ["MPLBACKEND"] = "Agg"  # before the import, which fails if this names a missing backend
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, stem: Path, what: str) -> str:
    """Write a figure to STEM.png and STEM.svg, and return a line with the paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        picture = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # in names of scripts that the font lacks
            figure.savefig(picture, format=path.suffix[1:], dpi=150)
        write_file(path, picture.getvalue())
    return f"{what} drawn: {' and '.join(map(str, paths))}"
