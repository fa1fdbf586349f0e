"""Classes: their names, and labels of every kind as the numbers of their classes."""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base import fields
from dpcnn.base.arrays import Array
from dpcnn.base.fields import FieldError, Table
from dpcnn.base.files import read_bytes
from dpcnn.errors import ConfigError, DataError

Names = tuple[str, ...]

MOST_CLASSES = 65_535
MOST_NAMES = 2 << 20
"""The most bytes of all class names together, as JSON: a manifest has at most 4 MiB."""

MOST_NAMES_FILE = 1 << 20
"""The largest size of a file of class names in bytes."""


def numbered(classes: int) -> Names:
    """The names of classes that have none of their own: "0", "1" and so on."""
    return tuple(map(str, range(classes)))


def check_names(names: Iterable[object], where: str) -> Names:
    """Class names that are different, printable and at most 255 characters long.

    Args:
        where: the beginning of a message.

    Raises:
        FieldError: a name is wrong, or there are two of the same name, or all together are too long.
    """
    checked: dict[str, None] = {}
    for name in names:
        if fields.name(name, where) in checked:
            raise FieldError(f"{where}: two classes have the name {name!r}")
        checked[str(name)] = None
    if len(json.dumps(list(checked))) > MOST_NAMES:
        raise FieldError(f"{where}: {len(checked):,} names take more than {MOST_NAMES:,} bytes; give shorter ones")
    return tuple(checked)


def class_type(classes: int) -> np.dtype[Any]:
    """The type of class numbers: uint8 for up to 256 classes, uint16 for more."""
    return np.dtype("u1" if classes <= 256 else "<u2")


def parse_names(table: Table, classes: int) -> Names:
    """The value ``class_names`` of a file, a name for each class; numbers in files of older versions, which have none.

    Raises:
        FieldError: the names are wrong, or not as many as the classes.
    """
    if "class_names" not in table:
        return numbered(classes)
    names = check_names(table.items("class_names"), "class_names")
    if len(names) != classes:
        raise FieldError(f"class_names: expected {classes} names, not {len(names)}")
    return names


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of their classes: by value if all are whole numbers, otherwise by their characters."""
    by_value = [(fields.digits(name), name) for name in names]
    if any(value is None for value, _ in by_value):
        return sorted(name for _, name in by_value)
    return [name for _, name in sorted(by_value)]


def read_names(text: str) -> Names:
    """The class names of ``--names``: separated by commas, or the lines of a text file.

    Raises:
        ConfigError: a name is wrong, or the file can't be read.
    """
    try:
        of_file = os.path.isfile(text)
        lines = read_bytes(Path(text), MOST_NAMES_FILE).decode().rstrip().splitlines() if of_file else text.split(",")
        if not lines:
            raise FieldError(f"--names: {text}: holds no names; expected one per line")
        return check_names(map(str.strip, lines), "--names")
    except OSError as error:
        raise ConfigError(f"--names: {text}: {error.strerror}; give the names themselves, as in cat,dog") from None
    except (FieldError, UnicodeDecodeError) as error:
        raise ConfigError(str(error) if isinstance(error, FieldError) else f"--names: {text}: not UTF-8") from None


def number_labels(path: Path, labels: Mapping[str, Array], names: Names | None) -> tuple[dict[str, Array], Names]:
    """The labels of each split as the numbers of their classes, and the names of the classes.

    Args:
        path: the source, for messages.
        labels: for each split (n,) or (n, 1) of integers or strings, or one-hot (n, classes).
        names: the class names that the user gives. None: those of strings in their order; otherwise numbers.

    Returns:
        Labels (n,) of the :func:`class_type`; and the names of all classes.

    Raises:
        DataError: the labels are of another kind, negative, too many, or without a name.
    """
    flat = {split: _flat(path, each) for split, each in labels.items()}
    if any(each.dtype.kind == "U" for each in flat.values()):
        return _of_strings(path, flat, names)
    least = min(int(each.min()) for each in flat.values())
    most = max(int(each.max()) for each in flat.values())
    if least < 0 or most >= MOST_CLASSES:
        raise DataError(
            f"{path}: labels up to {MOST_CLASSES - 1:,} ({MOST_CLASSES:,} classes) are supported, found "
            f"{most if least >= 0 else least}; number the classes from 0"
        )
    columns = max((each.shape[1] for each in labels.values() if each.ndim == 2), default=1)
    found = names or numbered(max(most + 1, columns if columns > 1 else 0))
    if len(found) <= most:
        raise DataError(f"{path}: labels up to {most}, but --names has {len(found)} names; give one for each class")
    if len(found) > MOST_CLASSES:
        raise DataError(f"{path}: {len(found):,} classes; at most {MOST_CLASSES:,} are supported")
    return {split: each.astype(class_type(len(found)), copy=False) for split, each in flat.items()}, found


def _flat(path: Path, labels: Array) -> Array:
    """Labels (n,) of integers or strings, of any array that :func:`number_labels` takes."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and labels.dtype.kind in "buif":
        if labels.shape[1] > MOST_CLASSES:
            raise DataError(f"{path}: one-hot labels of {labels.shape[1]:,} classes; {MOST_CLASSES:,} are supported")
        if not (((labels == 0) | (labels == 1)).all() and (np.count_nonzero(labels, axis=1) == 1).all()):
            raise DataError(
                f"{path}: labels {labels.shape}: expected one-hot rows, with a single 1 and zeros; otherwise give "
                "--targets multilabel or values"
            )
        labels = labels.argmax(axis=1)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind not in "iuU" or labels.ndim != 1:
        advice = "; give --targets values for a regression" if labels.dtype.kind == "f" else ""
        raise DataError(f"{path}: expected labels of whole numbers or text, not {labels.dtype} {labels.shape}{advice}")
    return labels


def _of_strings(path: Path, labels: Mapping[str, Array], names: Names | None) -> tuple[dict[str, Array], Names]:
    if any(each.dtype.kind != "U" for each in labels.values()):
        raise DataError(f"{path}: some labels are text and some are numbers; expected one kind")
    if not all(map(_is_unicode, labels.values())):
        raise DataError(f"{path}: labels that are no text; change the labels")
    numbers = assign_numbers(path, {name for each in labels.values() for name in np.unique(each).tolist()}, names)
    told = {}
    for split, each in labels.items():
        unique, inverse = np.unique(each, return_inverse=True)
        told[split] = np.array([numbers[name] for name in unique.tolist()], class_type(len(numbers)))[inverse]
    return told, tuple(numbers)


def assign_numbers(path: Path, found: set[str], names: Names | None) -> dict[str, int]:
    """The number of each class, in the order of numbers.

    Args:
        path: the source, for messages.
        found: the names of the classes in the source.
        names: all names in the order that the user gives; None: the order is that of :func:`in_order`.

    Raises:
        DataError: a name is wrong or unknown, or there are too many.
    """
    try:
        checked = names or check_names(in_order(found), f"{path}: class names")
    except FieldError as error:
        raise DataError(f"{error}; change the labels") from None
    unknown = in_order(found.difference(checked))
    if unknown:
        raise DataError(f"{path}: the class {unknown[0][:60]!r} is not in --names")
    if len(checked) > MOST_CLASSES:
        raise DataError(f"{path}: {len(checked):,} classes; at most {MOST_CLASSES:,} are supported")
    return {name: number for number, name in enumerate(checked)}


def _is_unicode(labels: Array) -> bool:
    """Whether the elements of a text array are characters: Python can't read others."""
    codes = np.ascontiguousarray(labels).view(np.dtype(np.uint32).newbyteorder(labels.dtype.byteorder))
    return int(codes.max(initial=0)) <= sys.maxunicode
