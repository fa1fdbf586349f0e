"""The types of the values of images, and the same values on the scale of uint8, as networks take them."""

import math
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.fields import FieldError, Table
from dpcnn.errors import DataError

BYTES = "uint8"

WHITE = {BYTES: 255.0, "uint16": 65535.0, "float16": 1.0, "float32": 1.0}
"""For each type of values the value of white, unless the user gives another one. All have 0 for black."""

LEAST_WHITE, MOST_WHITE = 1e-30, 1e30

STEPS = 257
"""The parts of a level of uint8 to which other values are rounded by :func:`levels`: 65535 / 255."""


def stored_type(name: str) -> np.dtype[Any]:
    """The type in files of one of :data:`WHITE`."""
    return np.dtype(name).newbyteorder("<")


def parse_pixels(table: Table) -> tuple[str, float | None]:
    """The values ``pixels`` and ``max_value`` of a file: images of uint8 have neither.

    Raises:
        FieldError: the type is unknown, or white is not a positive number.
    """
    if "pixels" not in table:
        return BYTES, None
    pixels = table.name("pixels")
    if pixels not in WHITE or pixels == BYTES:
        raise FieldError(f"pixels: expected one of {', '.join(WHITE)}, not {pixels[:60]!r}")
    return pixels, table.number("max_value", LEAST_WHITE, MOST_WHITE)


def scaled(images: Array, max_value: float | None) -> Array:
    """Images as networks take them: uint8 as they are, others as float32 in which white is 255.

    Args:
        max_value: the value of white; None: the images are uint8.
    """
    if max_value is None:
        return images
    return np.multiply(images, 255 / max_value, dtype=np.float32)


def levels(images: Array, max_value: float | None) -> Array:
    """The values as whole numbers: those of uint8 themselves; others are rounded to white / 65535, as 0..65535.

    Their sums are exact, in any order.
    """
    if max_value is None:
        return images
    return np.rint(images.astype(np.float64) * (255 * STEPS / max_value)).astype(np.uint16)


def check_values(what: str, images: Array, max_value: float | None) -> None:
    """Refuse values that are not from black to white.

    Args:
        what: the images, for messages.

    Raises:
        DataError: there are others.
    """
    if max_value is None or not images.size:
        return
    low, high = images.min().item(), images.max().item()
    if not math.isfinite(low + high):  # NaN, of one value, is the minimum and the maximum
        raise DataError(f"{what}: some values are not finite; replace them")
    if not 0 <= low <= high <= max_value:
        raise DataError(
            f"{what}: values from {low:g} to {high:g}, expected 0 to {max_value:g}; give --max-value, the value of "
            "white, or change the values so that black is 0"
        )
