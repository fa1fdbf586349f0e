"""Labels and values of a user as the targets of samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.fields import FieldError, label
from dpcnn.data.classes import MOST_CLASSES, check_names
from dpcnn.errors import DataError
from dpcnn.estimators.arrays import array_of


def labels_of(y: Any, count: int) -> Array:
    """The labels of ``count`` samples, (n,): whole numbers, truth values or text.

    Raises:
        DataError: y has another type or shape.
    """
    labels = array_of(y, "y")
    if labels.dtype.kind in "OT":  # objects, or texts of any length
        labels = array_of(labels.tolist(), "y")
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
    marks = array_of(y, "y")
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
    values = array_of(y, "y")
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2) or len(values) != count or not values.size:
        actual = f"{values.dtype} {values.shape}"
        advice = "; give a row for each image: y.reshape(len(y), -1)" if values.ndim > 2 else ""
        advice = "; convert them, as with y.astype(float)" if values.dtype.kind == "O" and values.ndim else advice
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
