"""Files from outside: plain files only, unpacked while they are read, within one limit on memory.

The data that a header announces, or that a file unpacks to, may cost at most :func:`allowance` bytes of memory. Every
reader of this package checks this before it allocates memory.
"""

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.files import open_plain, read_ahead, read_at
from dpcnn.errors import DataError, printable

LEAST_ALLOWANCE, TIMES_THE_FILE = 256 << 20, 20
BLOCK = 1 << 20
"""Bytes that are read at once."""


def allowance(size: int) -> int:
    """Bytes of memory that a file of ``size`` bytes may ask for: 20 times its size, but at least 256 MiB."""
    return max(LEAST_ALLOWANCE, TIMES_THE_FILE * size)


def check_memory(what: Path | str, needed: int, size: int, advice: str) -> None:
    """Refuse a file that asks for more memory than its allowance.

    Args:
        needed: bytes of memory.
        size: bytes of the file.
        advice: the next step for the user.

    Raises:
        DataError: it asks for more.
    """
    if needed > allowance(size):
        raise DataError(
            f"{what}: asks for {needed:,} bytes of memory, but a file of {size:,} bytes may ask for "
            f"{allowance(size):,} at most; {advice}"
        )


def reason(error: BaseException) -> str:
    """The message of a library about a damaged file, made printable: it may quote the file."""
    return printable(str(error) or type(error).__name__)[:200]


def why(error: OSError) -> str:
    """The system's own words for an error, which HDF5 puts into a long text of its own."""
    words = re.search("error message = '([^']+)'", str(error))
    return words[1] if words else error.strerror or reason(error)


@contextmanager
def making(out: Path) -> Iterator[None]:
    """Turn an error of the system, as of a full disk, into one that names ``out``, which the block makes beside it.

    Raises:
        DataError: in place of an OSError of a temporary file of ``out``.
    """
    try:
        yield
    except OSError as error:
        if error.filename and f".{out.name}." not in str(error.filename):
            raise
        raise DataError(f"{out}: can't be written ({why(error)}); make room there, or give another --out") from None


@contextmanager
def refusing(path: Path, kind: str) -> Iterator[None]:
    """Turn all errors of the libraries that read a damaged file of this kind into DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: can't be read as {kind} ({reason(error)}); get the file again") from None


class Reader:
    """Reads an open file from any place, as long as there is this object.

    Args:
        path: for messages.
        file: open for reading; this object works on after it is closed.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._descriptor = path, os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, out: memoryview, place: int) -> None:
        """Fill ``out`` with the bytes from ``place`` on.

        Raises:
            DataError: they can't be read, or the file is too short.
        """
        try:
            read_at(self._descriptor, out, place)
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror}); get the file again") from None
        except EOFError:
            raise DataError(f"{self.path}: ends too early; get the file again") from None

    def read_ahead(self, place: int, size: int) -> None:
        """Let the system begin to read ``size`` bytes from ``place`` on."""
        read_ahead(self._descriptor, place, size)


class Input:
    """The bytes of a file in order, unpacked if the file is gzip.

    Every method raises DataError if the file can't be read or unpacked.

    Attributes:
        path: for messages.
        size: bytes of the file as it is stored.
        packed: whether the file is gzip.

    Args:
        path: for messages.
        file: seekable.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file
        self.size = file.seek(0, os.SEEK_END)
        self.rewind()

    def __enter__(self) -> "Input":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def name(self) -> str:
        """A path by which a library can open this very file, as it is stored."""
        return f"/dev/fd/{self._file.fileno()}"

    def rewind(self) -> None:
        """Go back to the first byte."""
        self._file.seek(0)
        self.packed = self._file.read(2) == b"\x1f\x8b"
        self._file.seek(0)
        self._stream: Any = gzip.GzipFile(fileobj=self._file) if self.packed else self._file

    def reader(self) -> Reader:
        """Reads the file as it is stored, from any place; also after this object is closed."""
        return Reader(self.path, self._file)

    def head(self, count: int) -> bytes:
        """The first bytes; the next read starts with them again."""
        self.rewind()
        start = self.read(count)
        self.rewind()
        return start

    def read(self, count: int) -> bytes:
        """The next bytes; fewer only at the end of the file."""
        try:
            block: bytes = self._stream.read(count)
        except (OSError, EOFError, zlib.error) as error:
            action = "unpacked" if self.packed else "read"
            raise DataError(f"{self.path}: can't be {action} ({reason(error)}); get the file again") from None
        return block

    def fill(self, flat: NDArray[Any]) -> int:
        """Fill an array (n,) with the next bytes, and return their number."""
        return fill(flat, self.read)

    def plain(self) -> IO[bytes]:
        """The unpacked file from its first byte on, seekable; a packed file is unpacked into memory."""
        self.rewind()
        if not self.packed:
            return self._file
        unpacked = io.BytesIO()
        while block := self.read(BLOCK):
            unpacked.write(block)
            check_memory(self.path, unpacked.tell(), self.size, "unpack it by hand")
        unpacked.seek(0)
        return unpacked

    def sha256(self) -> str:
        """The sha256 of the file's bytes as they are stored, in hexadecimal digits."""
        self._file.seek(0)
        value = digest(self._file, "sha256")
        self.rewind()
        return value


def open_input(path: Path) -> Input:
    """Open a plain file for reading.

    Raises:
        DataError: it can't be opened, or is not a plain file.
    """
    try:
        return Input(path, open_plain(path))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give another file, or fix this") from None


def digest(file: Any, kind: str) -> str:
    """The digest of an open file's bytes, from its current position on, in hexadecimal digits."""
    return hashlib.file_digest(file, kind).hexdigest()


def fill(flat: NDArray[Any], read: Any) -> int:
    """Fill an array (n,) in blocks from ``read(count)``, and return the number of bytes."""
    view = flat.view(np.uint8)
    for start in range(0, len(view), BLOCK):
        length = min(BLOCK, len(view) - start)
        block = read(length)
        view[start : start + len(block)] = np.frombuffer(block, np.uint8)
        if len(block) < length:
            return start + len(block)
    return len(view)
