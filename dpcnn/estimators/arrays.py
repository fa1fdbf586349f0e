"""Arrays of a user as samples."""

import hashlib
import json
from collections.abc import Sequence
from math import isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.dataset import ARRAYS, Samples
from dpcnn.data.shards import CROP, Manifest
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES
from dpcnn.parallel.comm import SerialComm

SLACK = 1.0
"""How far floats may lie beyond 0 and 1, as those of other samples than the scaled ones do."""


class ArraySamples(Samples):
    """Samples in memory, uint8 or float32 of 0..255, from the functions of this module."""

    def __post_init__(self) -> None:
        pass


def samples_of(images: Array, targets: Array, labels: Array, max_value: float | None) -> ArraySamples:
    """The samples of images (n, H, W, C).

    Args:
        targets: (n,) the number of the class of each; or (n, K) float32 values, or uint8 zeros and ones for K labels.
        labels: (classes,) the label of each class; empty for (n, K).
        max_value: from which the images were made.
    """
    if targets.ndim == 1:
        targets = targets.astype(np.uint8 if len(labels) <= 256 else np.int64)
    content = hashlib.sha256(b"" if images.dtype == np.uint8 else images.dtype.str.encode())
    for array in (images, targets):
        content.update(array.data)
    _, H, W, C = images.shape
    manifest = Manifest(
        name=ARRAYS,
        image_shape=(H, W, C),
        class_names=tuple(map(str, labels.tolist() or range(targets.shape[1]))),
        resize=CROP,
        compressed=False,
        splits={},
        content={"train": content.hexdigest()},
        source={},
        targets=CLASSES if targets.ndim == 1 else VALUES if targets.dtype == np.float32 else MULTILABEL,
    )
    bounds = np.array([0, len(images)])
    return ArraySamples(manifest, (images,), bounds, targets, tuple(labels.tolist()), max_value)


def images_of(X: Any, image_shape: Shape | None, max_value: float | None) -> Array:
    """The images of an array.

    Args:
        X: (n, H, W), (n, H, W, C), or (n, F) with the values of each image in a row; whole numbers or floats.
        image_shape: (H, W, C); None: that of X, where rows of F values are square grey images.
        max_value: the value of white; None: 255 for whole numbers, 1 for floats.

    Returns:
        (n, H, W, C), contiguous: uint8, or float32 in which white is 255.

    Raises:
        DataError: X has another type or shape, or values that are not between 0 and white.
    """
    array = array_of(X, "X")
    if array.dtype.kind not in "biuf" or not array.size:
        raise DataError(f"X: expected images of numbers, not {array.dtype} {array.shape}{_advice(array)}")
    shape = tuple(image_shape or _shape(array.shape))
    if len(shape) != 3 or prod(shape) != prod(array.shape[1:]):
        raise DataError(f"X: expected images of image_shape={shape}, (H, W, C), not an array of {array.shape}")
    return np.ascontiguousarray(_pixels(array, max_value).reshape(-1, *shape))


def _advice(array: Array) -> str:
    """What to do about an array that has no numbers."""
    objects = array.dtype.kind == "O" and array.size > 0
    if array.dtype.kind in "UT" or (objects and isinstance(array.flat[0], str | Path)):
        return "; make a data set of picture files: dpcnn data prepare"
    return "; convert its numbers, as with X.astype(float)" if objects and array.ndim else ""


def array_of(values: Any, name: str) -> Array:
    """What a user gave as an array.

    Raises:
        DataError: it is no array, or some values are masked: an array of NumPy would have them, without the mask.
    """
    parts = values if isinstance(values, list | tuple) else [values]
    if any(np.ma.is_masked(part) for part in parts if isinstance(part, np.ma.MaskedArray)):
        raise DataError(f"{name}: some values are masked; replace them, as with {name}.filled(0), or leave them out")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of several lengths, for example
        raise DataError(f"{name}: not an array: {printable(str(error))}") from None


def _shape(shape: Shape) -> Shape:
    """The (H, W, C) of the images in an array of this shape."""
    if len(shape) == 4:
        return shape[1:]
    if len(shape) == 3:
        return (*shape[1:], 1)
    side = isqrt(shape[1]) if len(shape) == 2 else 0
    if not side or side**2 != shape[1]:
        raise DataError(
            f"X: expected (n, H, W), (n, H, W, C), or (n, F) of square grey images, not {shape}; "
            "for other images in rows, give the model image_shape=(H, W, C)"
        )
    return side, side, 1


def _pixels(array: Array, max_value: float | None) -> Array:
    """The array as uint8 where that keeps its values, otherwise as float32 with white at 255."""
    if array.dtype == np.uint8 and max_value in (None, 255):
        return array
    whole, low, high = array.dtype.kind != "f", array.min().item(), array.max().item()
    if not np.isfinite([low, high]).all():
        raise DataError("X: some values are not finite; replace them")
    if max_value is None:
        least, most, expected = (
            (0, 255, "whole numbers from 0 to 255") if whole else (-SLACK, 1 + SLACK, "floats from 0 to 1")
        )
        if not least <= low <= high <= most:
            raise DataError(
                f"X: expected {expected}, found {low:g} to {high:g}; give the model the value of white, max_value"
            )
        if whole:
            return array.astype(np.uint8)
    return np.multiply(array, 255 / (max_value or 1), dtype=np.float32, casting="unsafe")


def check_same(comm: SerialComm, arrays: Sequence[Array], options: Any = None) -> None:
    """Make sure that all ranks were given the same arrays and options.

    Raises:
        DataError: on every rank, if one was given others than rank 0.
    """
    if comm.size == 1:
        return
    content = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode())
        content.update(array.data)
    first = comm.broadcast_obj(content.hexdigest())
    with comm.fail_together():
        if content.hexdigest() != first:
            raise DataError(f"rank {comm.rank} was given other arrays or options than rank 0; give all ranks the same")
