"""NPZ and NPY files: the headers of all arrays are checked and bounded before any array is read."""

import io
import math
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.inputs import BLOCK, Input, check_memory, fill, refusing
from dpcnn.data.pixels import WHITE
from dpcnn.data.rows import FileImages
from dpcnn.errors import DataError, printable

ZIP = b"PK"
"""The first bytes of an NPZ file."""

MOST_HEADER = 4096  # bytes
MOST_LENGTH = 1 << 40
MOST_ITEM = 4 * 256
"""Bytes of an element: of a text of 256 characters."""

PACKING = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENTRY = 30
"""Bytes of a member's entry before its name; the last four are the lengths of the name and of the field after it."""

READ_HEADER: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Header:
    """The description of an array in an NPZ or NPY file.

    Attributes:
        member: its name in the ZIP file; empty for an NPY file.
        dtype: of bool, integers, floats or text.
        shape: of the array.
        fortran: whether its first index varies fastest.
        start: the bytes of the member before the array's data.
        stored: whether the array lies uncompressed in the file.
    """

    member: str
    dtype: np.dtype[Any]
    shape: Shape
    fortran: bool
    start: int
    stored: bool

    @property
    def nbytes(self) -> int:
        """The bytes of memory that are needed to read the array."""
        return math.prod(self.shape) * self.dtype.itemsize * (2 if self.fortran else 1)

    @property
    def stays(self) -> bool:
        """Whether the array is one of images that can be read from the file on demand."""
        known = self.dtype.newbyteorder("=").name in WHITE
        return self.stored and known and len(self.shape) in (3, 4) and not self.fortran


def read_headers(source: Input) -> dict[str, Header]:
    """The headers of all arrays of an NPZ file, by name.

    Raises:
        DataError: it is not an NPZ file of numbers and text, or is damaged.
    """
    with refusing(source.path, "NPZ or NPY"), zipfile.ZipFile(source.plain()) as file:
        names = [member.filename for member in file.infolist()]
        if len(set(names)) < len(names):
            raise ValueError("two members have the same name")
        return {member.filename.removesuffix(".npy"): _member(source, file, member) for member in file.infolist()}


def read_arrays(source: Input, headers: Iterable[Header]) -> list[Array]:
    """The arrays of these headers.

    Raises:
        DataError: they ask for too much memory, or are damaged.
    """
    headers = list(headers)
    needed = sum(header.nbytes for header in headers)
    check_memory(source.path, needed, source.size, "save the arrays uncompressed, by numpy.savez")
    with refusing(source.path, "NPZ or NPY"), zipfile.ZipFile(source.plain()) as file:
        return [_array(file, header) for header in headers]


def read_or_keep(source: Input, headers: Iterable[Header]) -> list[Any]:
    """The arrays of these headers; uncompressed images stay in the file, as :class:`FileImages`.

    Raises:
        DataError: they ask for too much memory, or are damaged.
    """
    headers = list(headers)
    read = iter(read_arrays(source, [header for header in headers if not header.stays]))
    return [_kept(source, header) if header.stays else next(read) for header in headers]


def read_npy(source: Input) -> Any:
    """The array of an NPY file; images stay in the file, as :class:`FileImages`.

    Raises:
        DataError: it is not an NPY file of numbers and text, asks for too much memory, or is damaged.
    """
    with refusing(source.path, "NPZ or NPY"):
        stream = source.plain()
        header = _header(source, "", stream.read(MOST_HEADER), not source.packed)
        check_memory(source.path, 0 if header.stays else header.nbytes, source.size, "get the file again")
        if header.stays:
            return _kept(source, header)
        stream.seek(0)
        return _filled(header, stream)


def _kept(source: Input, header: Header) -> FileImages:
    """Images that stay in the file, after a check of all their bytes."""
    place, size = header.start, source.size
    if header.member:
        with refusing(source.path, "NPZ or NPY"), zipfile.ZipFile(source.plain()) as file:
            place += _after_entry(source, file.getinfo(header.member).header_offset)
            size = sum(map(len, _blocks(file, header.member)))
    if header.start + header.nbytes != size:
        raise DataError(f"{source.path}: the array has another length than its header says; get the file again")
    H, W, *C = header.shape[1:]
    return FileImages(source.reader(), place, (header.shape[0], H, W, *(C or [1])), header.dtype)


def _blocks(file: zipfile.ZipFile, member: str) -> Iterator[bytes]:
    """All bytes of a member; at its end, its checksum is verified."""
    with file.open(member) as stream:
        while block := stream.read(BLOCK):
            yield block


def _member(source: Input, file: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    name = printable(member.filename)[:80]
    if not member.filename.endswith(".npy"):
        raise DataError(f"{source.path}: {name} is not an array; unpack an archive of pictures, and give its folder")
    if member.flag_bits & 1 or member.compress_type not in PACKING:
        raise ValueError(f"{name} is encrypted, or compressed otherwise than by deflate")
    with file.open(member) as stream:
        start = stream.read(MOST_HEADER)
    stored = member.compress_type == zipfile.ZIP_STORED and not source.packed
    return _header(source, member.filename, start, stored)


def _after_entry(source: Input, entry: int) -> int:
    """The place of a stored member's first byte, behind its entry in the file."""
    head = bytearray(ENTRY)
    source.reader().read(memoryview(head), entry)
    lengths = np.frombuffer(head, "<u2", 2, ENTRY - 4)
    return entry + ENTRY + int(lengths.sum(dtype=np.int64))


def _header(source: Input, member: str, content: bytes, stored: bool) -> Header:
    """The header in the first bytes of a member."""
    name, start = printable(member)[:80] or "it", io.BytesIO(content)
    read = READ_HEADER.get(np.lib.format.read_magic(start))
    if read is None:
        raise ValueError(f"{name} is not a plain array")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from NumPy, about headers that Python 2 wrote
        shape, fortran, dtype = read(start)
    if dtype.hasobject:
        raise DataError(
            f"{source.path}: {name} holds Python objects; convert it to an array of numbers or text, as by "
            "np.array(x.tolist()), and save it again"
        )
    if dtype.kind not in "buifUS" or not 0 < dtype.itemsize <= MOST_ITEM:
        raise ValueError(f"{name} holds {printable(str(dtype))[:80]}, not plain numbers or short text")
    if not all(0 <= length <= MOST_LENGTH for length in shape):
        raise ValueError(f"{name} has the shape {str(shape)[:80]}")
    return Header(member, dtype, tuple(map(int, shape)), fortran, start.tell(), stored)


def _array(file: zipfile.ZipFile, header: Header) -> Array:
    with file.open(header.member) as stream:
        return _filled(header, stream)


def _filled(header: Header, stream: Any) -> Array:
    """The array of a stream that begins with its header."""
    flat = np.empty(math.prod(header.shape), header.dtype)
    stream.read(header.start)
    count = fill(flat, stream.read)
    if count < flat.nbytes or stream.read(1):  # at its end, zipfile verifies the member's checksum
        raise ValueError(f"{printable(header.member)[:80] or 'it'}: its header and its length disagree")
    return np.ascontiguousarray(flat.reshape(header.shape, order="F" if header.fortran else "C"))
