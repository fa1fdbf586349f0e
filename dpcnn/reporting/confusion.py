"""The confusion matrix, and the classes that a network confuses most."""

from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.data.classes import Names
from dpcnn.reporting.figures import new_figure, picture, save, short

MOST_NUMBERED, MOST_CELLS, MOST_PAIRS, MOST_LETTERS = 30, 250, 15, 22
"""The most classes of a picture with names and counts, cells on a side of a picture, pairs of classes in a table, and
characters of a name in a picture."""

POINTS = 280
"""About the length of a side of the matrix in a picture, in points."""

PAIR_HEADER = ("true class", "predicted class", "samples", "of the class")


def confused_pairs(confusion: Array, names: Names) -> list[tuple[str, ...]]:
    """The pairs of classes with the most mistakes, a row for each under :data:`PAIR_HEADER`; equal counts by class.

    Args:
        confusion: (classes, classes) counts: by row the true class, by column the predicted one.
        names: of the classes.
    """
    mistakes, samples = off_diagonal(confusion), confusion.sum(axis=1)
    worst = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_PAIRS]
    pairs = [(row, column) for row, column in zip(*np.unravel_index(worst, mistakes.shape), strict=True)]
    return [
        (names[row], names[column], f"{mistakes[row, column]:,}", f"{mistakes[row, column] / samples[row]:.1%}")
        for row, column in pairs
        if mistakes[row, column]
    ]


def off_diagonal(confusion: Array) -> Array:
    """A confusion matrix of the mistakes alone."""
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    return mistakes


@picture
def draw_confusion(confusion: Array, names: Names, stem: Path) -> str:
    """Draw a confusion matrix to STEM.png and STEM.svg.

    Only mistakes are shaded. The diagonal has the counts of the samples that are classified right. With many classes,
    there are no names and counts: a cell then stands for a square of pairs and has the shade of the largest count among
    them, and shades grow with the root of the count, so that rare mistakes are visible.

    Args:
        confusion: (classes, classes) counts: by row the true class, by column the predicted one.
        names: of the classes.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    figure = new_figure(width=6, height=5.5)
    axes = figure.subplots()
    if len(confusion) <= MOST_NUMBERED:
        axes.set(xlabel="predicted class", ylabel="true class")
        _draw_counts(axes, confusion, [short(name, MOST_LETTERS) for name in names])
    else:
        every = f"the {len(confusion):,} classes in their order"
        axes.set(xlabel=f"predicted class: {every}", ylabel=f"true class: {every}", xticks=[], yticks=[])
        axes.axline((0, 0), slope=1, color="C0", lw=0.5)
        axes.imshow(np.sqrt(largest(off_diagonal(confusion))), cmap="Greys", interpolation="nearest")
    return save(figure, stem, "confusion matrix")


def _draw_counts(axes: Any, confusion: Array, labels: list[str]) -> None:
    """Draw each count in its cell, and the names of the classes beside them."""
    mistakes = off_diagonal(confusion)
    most = max(1, mistakes.max())
    axes.imshow(mistakes, cmap="Greys", vmin=0, vmax=most)
    cell = POINTS / len(labels)
    size, digits = min(10, cell), len(str(confusion.max()))
    axes.set_xticks(range(len(labels)), labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    for (row, column), count in np.ndenumerate(confusion):
        style = {
            "color": "white" if mistakes[row, column] > most / 2 else "black",
            "fontsize": min(10, 1.5 * cell / digits),
        }
        weight = "bold" if row == column else "normal"
        axes.text(column, row, count or "", ha="center", va="center", weight=weight, **style)


def largest(counts: Array) -> Array:
    """The largest count of each square of counts, (k, k); k is at most :data:`MOST_CELLS`."""
    step = -(-len(counts) // MOST_CELLS)
    starts = np.arange(0, len(counts), step)
    cells: Array = np.maximum.reduceat(np.maximum.reduceat(counts, starts, axis=0), starts, axis=1)
    return cells
