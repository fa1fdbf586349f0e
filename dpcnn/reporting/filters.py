"""Pictures of filters and feature maps, before and after training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.reporting.figures import new_figure, picture, save, show

MOST_PICTURES = 64
"""The most filters or maps in a picture."""


@picture
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
    _before_and_after(figure.subfigures(1, 2), before, after, columns)
    return save(figure, stem, "filters")


@picture
def draw_maps(image: Array, before: Array, after: Array, shades: str, stem: Path) -> str:
    """Draw an image, and a layer's output for it before and after training, to STEM.png and STEM.svg.

    Args:
        image: (H, W, C), uint8.
        before, after: (h, w, F).
        shades: the colour map of a grey image, see :func:`dpcnn.reporting.figures.shades_of`.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    before, after = before[:, :, :MOST_PICTURES], after[:, :, :MOST_PICTURES]
    columns = min(before.shape[2], 4)
    rows = -(-before.shape[2] // columns)
    figure = new_figure(width=2 + 1.8 * columns, height=0.5 + 0.9 * rows)
    parts = figure.subfigures(1, 3, width_ratios=(2, 0.9 * columns, 0.9 * columns))
    parts[0].suptitle("image")
    show(parts[0].subplots(), image, shades)
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
