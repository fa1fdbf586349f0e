"""Pictures of single characters as images like MNIST's."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.shards import Images
from dpcnn.errors import DataError

INK = 0.2
"""Of the strongest ink, how much a pixel needs to count as drawn upon, where the drawing's edges are looked for."""

Picture = NDArray[np.float64]


def like_mnist(path: Path, picture: Picture, size: tuple[int, int]) -> Images:
    """A character as MNIST has it: light on dark, in a box of 5/7 of the image, its centre of mass in the middle.

    LeCun et al., "Gradient-based learning applied to document recognition" (1998), section III.A: 20 of 28 pixels.

    Args:
        picture: (h, w) grey values, dark on light or light on dark; the border tells which.
        size: (H, W) of the image to make.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: nothing is drawn.
    """
    from PIL import Image

    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = float(np.median(border))
    sign = -1 if background > picture.mean() else 1
    ink = np.clip(sign * (picture - background), 0, None)
    if ink.max() < 16:  # of 255: less is noise
        raise DataError(f"{path}: nothing is drawn in it; expected one character, darker or lighter than its ground")
    ink *= 255 / ink.max()
    rows, columns = (np.flatnonzero((ink > INK * 255).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = min(size) * 5 / 7
    scale = box / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    way = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), way))
    made = np.zeros(size, np.uint8)
    places = [_start(small.sum(axis=1 - axis), small.shape[axis], size[axis]) for axis in (0, 1)]
    made[places[0] : places[0] + height, places[1] : places[1] + width] = np.clip(small.round(), 0, 255)
    return made


def _start(mass: NDArray[Any], length: int, room: int) -> int:
    """The start of a drawing along an axis, so that its centre of mass is at pixel room / 2, if it fits."""
    centre = float((mass * np.arange(length)).sum() / mass.sum())
    return min(max(round(room / 2 - centre), 0), room - length)
