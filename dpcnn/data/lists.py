"""Lists of picture files with their labels; CSV files as one form of them. All untrusted."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.files import open_plain
from dpcnn.base.text import count_of
from dpcnn.data.arrays import CSV_FOLDER
from dpcnn.data.classes import MOST_CLASSES
from dpcnn.data.inputs import check_memory
from dpcnn.data.kinds import SUFFIXES
from dpcnn.errors import DataError

HEADERS = ("file", "filename", "file_name", "filepath", "path", "image", "image_name", "image_path", "picture", "photo")
LABELS = ("label", "labels", "class", "category")
"""What the first and the second cell of a CSV file may be called."""

MOST_FILES = 1 << 26


@dataclass
class Listing:
    """Picture files by class, still without numbers for the classes.

    Attributes:
        files: paths relative to the source's folder, each as bytes, in arrays of one class or block each.
        labels: for each file the index of its class in ``classes``, in arrays as long as those of ``files``.
        classes: the names of the classes, in the order in which they were found.
        remarks: lines for people about files that are left out.
    """

    files: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, files: Sequence[bytes], labels: Sequence[str]) -> None:
        """Add files with their labels.

        Raises:
            DataError: there are too many classes.
        """
        numbers = [self.classes.setdefault(label, len(self.classes)) for label in labels]
        if len(self.classes) > MOST_CLASSES:
            raise DataError(f"more than {MOST_CLASSES:,} classes; at most {MOST_CLASSES:,} are supported")
        self.files.append(np.array(files))
        self.labels.append(np.array(numbers, np.uint16))


def read_list(path: Path) -> Listing:
    """The files and labels of a CSV file, one of each per line, and perhaps a header.

    Raises:
        DataError: it is not such a file.
    """
    listing = Listing()
    try:
        with open_plain(path) as file:
            files, labels = _columns(csv.reader(_lines(file)))
            longest = max(map(len, files), default=0)
            check_memory("the list", longest * len(files), file.tell(), f"shorten the one of {longest:,} bytes")
            listing.add(files, labels)
    except (OSError, csv.Error, DataError) as error:
        raise DataError(f"{path}: {error}; expected lines of file,label in UTF-8; for pixels, {CSV_FOLDER}") from None
    if not any(map(len, listing.files)):
        raise DataError(f"{path}: no files; expected lines of file,label in UTF-8")
    return listing


def _lines(file: Iterator[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if b"\r" in line.removesuffix(b"\n").removesuffix(b"\r"):
            raise DataError(f"line {number} has a carriage return (CR) inside; end the lines with LF or CR LF")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise DataError(f"line {number} is not in UTF-8, but perhaps in Latin-1; save the file as UTF-8") from None


def _columns(rows: Iterator[list[str]]) -> tuple[list[bytes], list[str]]:
    """The files and the labels."""
    files: list[bytes] = []
    labels: list[str] = []
    for number, row in enumerate(rows, 1):
        if fault := _fault([cell.strip().lower() for cell in row]):
            raise DataError(f"line {number} {fault}")
        if not row or (number == 1 and row[0].strip().lower() in HEADERS):
            continue
        files.append(os.fsencode(row[0].strip()))
        labels.append(row[1].strip())
        if len(files) > MOST_FILES:
            raise DataError(f"more than {MOST_FILES:,} lines")
    return files, labels


def _fault(row: list[str]) -> str:
    """What is wrong with a row, whose cells are in lower case; empty if it is a file and a label, or blank."""
    if len(row) == 1 and (";" in row[0] or "\t" in row[0]):
        return f"has {'semicolons' if ';' in row[0] else 'tabs'} between its values in place of commas"
    if row and len(row) != 2:
        return f"has {count_of(len(row), 'value')}"
    if row and "\0" in row[0]:
        return "has a zero byte"
    swapped = row and row[1].endswith(SUFFIXES) and not row[0].endswith(SUFFIXES)
    if swapped or (row and row[0] in LABELS and row[1] in HEADERS):
        return "has the label before the file; exchange the columns"
    return ""
