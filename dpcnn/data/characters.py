"""Pictures of single characters as images like MNIST's."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.shards import Images
from dpcnn.errors import DataError

INK = 0.2
"""The fraction of the strongest ink from which on a pixel belongs to the drawing, when its edges are located."""

Picture = NDArray[np.float64]


def like_mnist(path: Path, picture: Picture, size: tuple[int, int]) -> Images:
    """Make a character like those of MNIST: light on dark, in a box of 5/7 of the image, its centre of mass centred.

    LeCun et al., "Gradient-based learning applied to document recognition" (1998), section III.A: 20 of 28 pixels.

    Args:
        picture: (h, w) grey values, dark on light or light on dark; the border shows which.
        size: (H, W) of the image to make.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: the picture is blank.
    """
    from PIL import Image

    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = float(np.median(border))
    sign = -1 if background > picture.mean() else 1
    ink = np.clip(sign * (picture - background), 0, None)
    if ink.max() < 16:  # of 255: less is noise
        raise DataError(f"{path}: the picture is blank; expected one character, darker or lighter than its background")
    ink *= 255 / ink.max()
    rows, columns = (np.flatnonzero((ink > INK * 255).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = min(size) * 5 / 7
    scale = box / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    resampling = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), resampling))
    image = np.zeros(size, np.uint8)
    starts = [_start(small.sum(axis=1 - axis), small.shape[axis], size[axis]) for axis in (0, 1)]
    image[starts[0] : starts[0] + height, starts[1] : starts[1] + width] = np.clip(small.round(), 0, 255)
    return image


def _start(mass: NDArray[Any], length: int, room: int) -> int:
    """The start of a drawing along an axis, so that its centre of mass is at pixel room / 2, if it fits."""
    centre = float((mass * np.arange(length)).sum() / mass.sum())
    return min(max(round(room / 2 - centre), 0), room - length)
