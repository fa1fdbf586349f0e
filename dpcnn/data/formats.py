"""Images and labels in IDX and CSV files."""

import math
import re
import struct
from collections.abc import Iterator
from typing import IO

import numpy as np

from dpcnn.data.inputs import Input, check_memory, reason
from dpcnn.data.shards import MOST_SIDE, Images
from dpcnn.errors import DataError, printable

IDX_BYTES = b"\0\0\x08"
"""The first bytes of an IDX file of unsigned bytes; the number of dimensions follows."""

CSV_EXPECTED = "expected label,pixel,pixel,.. in 0..255 in each line"


def read_idx(source: Input) -> Images:
    """Read an IDX file of unsigned bytes: labels (n,), images (n, H, W), or images (n, H, W, C).

    Raises:
        DataError: its header and its length disagree, or it holds other numbers.
    """
    path = source.path
    start = source.read(4)
    if len(start) < 4 or start[:3] != IDX_BYTES or start[3] not in (1, 3, 4):
        raise DataError(f"{path}: not an IDX file of unsigned bytes in 1, 3 or 4 dimensions: it starts with {start!r}")
    sides = source.read(4 * start[3])
    if len(sides) < 4 * start[3]:
        raise DataError(f"{path}: ends within its header; get the file again")
    shape = struct.unpack(f">{start[3]}I", sides)
    if not all(shape):
        raise DataError(f"{path}: its header says {shape}, so it holds no samples; get the file again")
    check_memory(path, math.prod(shape), source.size, "if its header is not damaged, unpack it by hand")
    flat = np.empty(math.prod(shape), np.uint8)
    count = source.fill(flat)
    if count < len(flat) or source.read(1):
        fault = f"{count} bytes follow" if count < len(flat) else "more bytes follow"
        raise DataError(f"{path}: its header says {shape}, but {fault}; get the file again")
    return flat.reshape(shape)


def read_csv(source: Input) -> tuple[Images, Images]:
    """Read a CSV file with one sample per line: a label and the pixels of a square image. A header is skipped.

    Returns:
        Images (n, side, side) and labels (n,).

    Raises:
        DataError: a line is wrong; the message names it.
    """
    file, path = source.plain(), source.path
    first = file.readline()
    start = 3 if first.startswith(b"\xef\xbb\xbf") else 0  # the byte order mark of UTF-8
    skipped = int(_is_header(first[start:]))
    start = len(first) if skipped else start
    file.seek(start)
    columns = _check_lines(source, file, 1 + skipped)
    side = math.isqrt(max(columns - 1, 0))
    if not 0 < side <= MOST_SIDE or side * side + 1 != columns:
        raise DataError(f"{path}: {columns} values per line; expected a label and the pixels of a square image")
    file.seek(start)
    try:
        table = np.loadtxt(file, np.uint8, comments=None, delimiter=",", ndmin=2)
    except ValueError as error:
        file.seek(start)
        raise DataError(f"{path}: {_fault(file, 1 + skipped) or reason(error)}; {CSV_EXPECTED}") from None
    return table[:, 1:].reshape(-1, side, side), np.ascontiguousarray(table[:, 0])


def _is_header(line: bytes) -> bool:
    """Whether a line begins with a column's name."""
    first = line.partition(b",")[0].strip(b'" \r\n')
    return re.fullmatch(rb"[A-Za-z_ ]+", first) is not None and first.lower() not in (b"nan", b"inf", b"infinity")


MOST_COLUMNS = 1 + 1024**2
"""The most values of a line: a label and the pixels of an image. NumPy's parser needs many bytes for each."""


MOST_LINE = 16 * MOST_COLUMNS
"""The most bytes of a line; a longer line counts as several lines, which have the wrong number of values."""


def _lines(file: IO[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers in the file."""
    for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), b""), first):
        if line.strip():
            yield number, line


def _check_lines(source: Input, file: IO[bytes], first: int) -> int:
    """Check that lines hold only whole numbers and commas; return the number of values, the same in each line."""
    path, columns, before = source.path, 0, 0
    for number, line in _lines(file, first):
        foreign = line.translate(None, b"0123456789, \r\n")
        if foreign:
            tip = "the text is in UTF-16; save it as plain CSV" if b"\0" in foreign else CSV_EXPECTED
            raise DataError(f"{path}: line {number}: {printable(repr(foreign[:1])[1:])} is not a digit or comma; {tip}")
        count = line.count(b",") + 1
        if count > MOST_COLUMNS:
            raise DataError(
                f"{path}: line {number}: {count:,} values; at most {MOST_COLUMNS:,} are read; {CSV_EXPECTED}"
            )
        if columns and count != columns:
            raise DataError(f"{path}: line {number}: {count} values, but line {before} has {columns}; {CSV_EXPECTED}")
        columns, before = count, number
    if not columns:
        raise DataError(f"{path}: holds no samples; {CSV_EXPECTED}")
    return columns


def _fault(file: IO[bytes], first: int) -> str:
    """The first value that is not a whole number up to 255, and its line."""
    for number, line in _lines(file, first):
        for value in line.split(b","):
            text = value.strip().decode()
            if not text.isdecimal():
                return f"line {number}: {printable(repr(text))[:40]} is not a whole number"
            if len(text.lstrip("0")) > 3 or int(text) > 255:
                return f"line {number}: {text[:20]} is above 255"
    return ""
