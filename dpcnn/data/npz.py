"""NPZ files: the headers of all arrays are checked and bounded before any array is read."""

import io
import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.inputs import Input, check_memory, fill, reason
from dpcnn.errors import DataError, printable

ZIP = b"PK"
"""The first bytes of an NPZ file."""

MOST_HEADER = 4096  # bytes
MOST_LENGTH = 1 << 40
PACKING = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
READ_HEADER: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """The header of an array in an NPZ file.

    Attributes:
        member: its name in the ZIP file.
        dtype: of bool, integers or floats.
        shape: of the array.
        fortran: whether its first index varies fastest.
        start: the bytes of the member before the array's data.
    """

    member: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def nbytes(self) -> int:
        """The bytes of memory that are needed to read the array."""
        return math.prod(self.shape) * self.dtype.itemsize * (2 if self.fortran else 1)


def read_headers(source: Input) -> dict[str, Header]:
    """The headers of all arrays, by name.

    Raises:
        DataError: it is not an NPZ file of numbers, or is damaged.
    """
    with _refusing(source), zipfile.ZipFile(source.plain()) as file:
        names = [member.filename for member in file.infolist()]
        if len(set(names)) < len(names):
            raise ValueError("two members have the same name")
        return {member.filename.removesuffix(".npy"): _header(file, member) for member in file.infolist()}


def read_arrays(source: Input, headers: Iterable[Header]) -> list[NDArray[Any]]:
    """The arrays of these headers.

    Raises:
        DataError: they ask for too much memory, or are damaged.
    """
    headers = list(headers)
    needed = sum(header.nbytes for header in headers)
    check_memory(source.path, needed, source.size, "save the arrays uncompressed, by numpy.savez")
    with _refusing(source), zipfile.ZipFile(source.plain()) as file:
        return [_array(file, header) for header in headers]


def _header(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    name = printable(member.filename)[:80]
    if not member.filename.endswith(".npy"):
        raise ValueError(f"{name} is not an array")
    if member.flag_bits & 1 or member.compress_type not in PACKING:
        raise ValueError(f"{name} is encrypted, or compressed otherwise than by deflate")
    with file.open(member) as stream:
        start = io.BytesIO(stream.read(MOST_HEADER))
    read = READ_HEADER.get(np.lib.format.read_magic(start))
    if read is None:
        raise ValueError(f"{name} is not a plain array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from NumPy, about headers that Python 2 wrote
        shape, fortran, dtype = read(start)
    if dtype.kind not in "buif":
        raise ValueError(f"{name} holds {printable(str(dtype))[:80]}, not plain numbers")
    if not all(0 <= length <= MOST_LENGTH for length in shape):
        raise ValueError(f"{name} has the shape {str(shape)[:80]}")
    return Header(member.filename, dtype, tuple(map(int, shape)), fortran, start.tell())


def _array(file: zipfile.ZipFile, header: Header) -> NDArray[Any]:
    flat = np.empty(math.prod(header.shape), header.dtype)
    with file.open(header.member) as stream:
        stream.read(header.start)
        count = fill(flat, stream.read)
        if count < flat.nbytes or stream.read(1):  # at its end, zipfile verifies the member's checksum
            raise ValueError(f"{printable(header.member)[:80]}: its header and its length disagree")
    return np.ascontiguousarray(flat.reshape(header.shape, order="F" if header.fortran else "C"))


@contextmanager
def _refusing(source: Input) -> Iterator[None]:
    """Turn the errors of zipfile and NumPy for damaged files into DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{source.path}: can't be read as NPZ ({reason(error)}); get the file again") from None
