"""Arrays of a user as samples."""

import hashlib
import json
from collections.abc import Sequence
from math import isqrt, prod
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.fields import FieldError, label
from dpcnn.data.classes import check_names
from dpcnn.data.dataset import ARRAYS, Samples
from dpcnn.data.moments import Moments
from dpcnn.data.shards import CROP, Manifest
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES
from dpcnn.parallel.comm import SerialComm

SLACK = 1.0
"""How far floats may lie beyond 0 and 1, as those of other samples than the scaled ones do."""

MOST_CLASSES = 1 << 16

BLOCK = 1 << 20
"""The values whose sums are computed at once, which bounds the memory for them."""


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


def moments_of(images: Array) -> tuple[list[float], list[float]]:
    """The mean and the deviation of each channel of images (n, H, W, C), uint8 or float32 of 0..255.

    Those of uint8 are the values of a data set with the same images. Floats are not rounded, unlike those of a data
    set, and can lie beyond 0 and 255.
    """
    rows = max(1, BLOCK // prod(images.shape[1:]))
    blocks = [images[start : start + rows] for start in range(0, len(images), rows)]
    if images.dtype == np.uint8:
        moments = Moments(images.shape[-1])
        for block in blocks:
            moments.add(block)
        mean, deviation = moments.mean_and_deviation()
        return [*mean], [*deviation]
    count, axes = images[..., 0].size, (0, 1, 2)
    first = images[0, 0, 0].astype(np.float64)  # the differences of a channel without variation are exactly 0
    means = first + sum((block - first).sum(axis=axes) for block in blocks) / count
    squares = sum(np.square(block - means).sum(axis=axes) for block in blocks) / count
    return means.tolist(), [each or 1.0 for each in np.sqrt(squares).tolist()]


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
    array = _array(X, "X")
    if array.dtype.kind not in "biuf" or not array.size:
        advice = "; make a data set of picture files: dpcnn data prepare" if array.dtype.kind in "UO" else ""
        raise DataError(f"X: expected images of numbers, not {array.dtype} {array.shape}{advice}")
    shape = tuple(image_shape or _shape(array.shape))
    if len(shape) != 3 or prod(shape) != prod(array.shape[1:]):
        raise DataError(f"X: expected images of image_shape={shape}, (H, W, C), not an array of {array.shape}")
    return np.ascontiguousarray(_pixels(array, max_value).reshape(-1, *shape))


def _array(values: Any, name: str) -> Array:
    """What a user gave as an array.

    Raises:
        DataError: it is no array, or some values are masked: an array of NumPy would have them, without the mask.
    """
    if any(map(np.ma.is_masked, values if isinstance(values, list | tuple) else [values])):
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


def labels_of(y: Any, count: int) -> Array:
    """The labels of ``count`` samples, (n,): whole numbers, truth values or text.

    Raises:
        DataError: y has another type or shape.
    """
    labels = _array(y, "y")
    if labels.dtype.kind == "O":
        labels = _array(labels.tolist(), "y")
    if labels.dtype.kind == "U":
        _check_texts(y)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "biuU":
        actual = f"{labels.dtype} {labels.shape}"
        advice = ""
        if labels.ndim == 2:
            advice = "; of one-hot rows, give y.argmax(axis=1); for several labels per image, "
            advice += "give loss='sigmoid-cross-entropy'"
        elif labels.shape == (count,) and labels.dtype.kind == "f":
            advice = "; convert classes, as with y.astype(int), or use dpcnn.Regressor for values"
        expected = f"labels ({count},), one for each image, whole numbers or text"
        raise DataError(f"y: expected {expected}, not {actual}{advice}")
    return labels


def _check_texts(y: Any) -> None:
    """Make sure that labels are texts only: NumPy makes a text of any value beside texts, also of a missing one.

    Raises:
        DataError: they are not.
    """
    for value in np.asarray(y, object).flat:
        if not isinstance(value, str):
            raise DataError(f"y: expected texts only, or numbers only, found {repr(value)[:80]} among texts")


def marks_of(y: Any, count: int, columns: int | None = None) -> Array:
    """Which of K labels each of ``count`` samples has, (n, K) uint8, from an array (n, K) of zeros and ones.

    Args:
        columns: K, if it is known.

    Raises:
        DataError: y has another type, shape or values.
    """
    marks = _array(y, "y")
    fits = marks.dtype.kind in "biuf" and marks.ndim == 2 and len(marks) == count and marks.size > 0
    if not fits or not ((marks == 0) | (marks == 1)).all():
        actual = f"{marks.dtype} {marks.shape}"
        raise DataError(f"y: expected zeros and ones ({count}, K), which of K labels each image has, not {actual}")
    if columns not in (None, marks.shape[1]):
        raise DataError(f"y: expected {columns} labels, as in the training, not {marks.shape[1]}")
    return np.ascontiguousarray(marks.astype(np.uint8))


def values_of(y: Any, count: int, columns: int | None = None) -> Array:
    """The values of ``count`` samples, (n, K) float32, from an array (n,) or (n, K) of numbers.

    Args:
        columns: K, if it is known.

    Raises:
        DataError: y has another type or shape, or values that are not finite.
    """
    values = _array(y, "y")
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or len(values) != count or not values.size:
        actual = f"{values.dtype} {values.shape}"
        advice = "; give a row for each image: y.reshape(len(y), -1)" if values.ndim > 2 else ""
        raise DataError(f"y: expected numbers ({count},) or ({count}, K), one row for each image, not {actual}{advice}")
    found = values.reshape(count, -1).astype(np.float32, order="C")
    if columns not in (None, found.shape[1]):
        raise DataError(f"y: expected {columns} values for each image, as in the training, not {found.shape[1]}")
    if not np.isfinite(found).all():
        raise DataError("y: some values are not finite, or too large for float32; replace them")
    return found


def classes_of(labels: Array) -> Array:
    """The labels of all classes, ascending, (classes,).

    Raises:
        DataError: there are fewer than two, or too many, or a checkpoint can't contain one of them.
    """
    classes: Array = np.unique(labels)
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(f"y: {len(classes):,} different labels; expected 2 to {MOST_CLASSES:,}, one per class")
    try:
        check_names([str(label(value, "y")) for value in classes.tolist()], "y")
    except FieldError as error:
        raise DataError(str(error)) from None
    return classes


def numbered(labels: Array, classes: Array) -> Array:
    """The number of each label's class, (n,).

    Args:
        classes: the labels of all classes, ascending.

    Raises:
        DataError: a label is not among them.
    """
    check_kind(labels, classes)
    numbers: Array = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    unknown = labels[classes[numbers] != labels]
    if len(unknown):
        raise DataError(f"y: no class {unknown[0].item()!r} among the labels of the training: {_few(classes.tolist())}")
    return numbers


def check_kind(labels: Array, classes: Array) -> None:
    """Make sure that labels are texts like those of the training, or numbers like those.

    Raises:
        DataError: they are not.
    """
    if (labels.dtype.kind == "U") != (classes.dtype.kind == "U"):
        raise DataError(f"y: expected labels of the type {classes.dtype}, as in the training, not {labels.dtype}")


def _few(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:10])) + (", .." if len(values) > 10 else "")


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
