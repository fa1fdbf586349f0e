"""The open files of data shards."""

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dpcnn.base.files import expect_random, open_plain, read_ahead, read_at
from dpcnn.data.inputs import digest
from dpcnn.data.shards import MANIFEST, Shard
from dpcnn.errors import DataError


class FileState(NamedTuple):
    """The properties that change with a file's content; times in nanoseconds since 1970."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class ShardFile:
    """A shard's open file: the verified bytes and the bytes that are read belong to the same file.

    Attributes:
        path: for messages.
        shard: its entry in the manifest.
        state: when it was opened, or when its bytes were last compared with the manifest.
        size: in bytes, when it was opened.

    Args:
        folder: of the data set.
        shard: its entry in the manifest.

    Raises:
        DataError: the plain file does not exist.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path, self.shard, self._descriptor = folder / shard.file, shard, -1
        try:
            with open_plain(self.path) as file:
                self._descriptor = os.dup(file.fileno())
            self.state = self._look()
        except OSError as error:
            many = error.errno == errno.EMFILE
            why = "raise the limit: ulimit -n" if many else f"but {MANIFEST} names it; restore it or prepare again"
            raise DataError(f"{self.path}: {error.strerror}, {why}") from None
        self.size = self.state.size

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing more can be read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    @property
    def name(self) -> str:
        """A path by which a library can open this file, even if it has been renamed or removed."""
        return f"/dev/fd/{self._descriptor}"

    def verify(self) -> None:
        """Compare the file's bytes with the manifest; DataError if they differ."""
        actual = self.sha256()
        if actual != self.shard.sha256:
            raise DataError(
                f"{self.path}: damaged or replaced: its sha256 is {actual[:16]}.., {MANIFEST} says "
                f"{self.shard.sha256[:16]}..; restore it or prepare again"
            )

    def check_unchanged(self) -> None:
        """Verify the file again if its size, times or inode have changed since it was opened.

        Raises:
            DataError: its bytes have changed.
        """
        state = self._look()
        if state == self.state:
            return
        if self.sha256() != self.shard.sha256:
            raise DataError(
                f"{self.path}: was changed while it was in use: its sha256 is no longer that of {MANIFEST}; "
                "restore it or prepare again, then continue with --resume"
            )
        self.state = state

    def read(self, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            DataError: they can't be read, or are missing.
        """
        try:
            read_at(self._descriptor, out, offset)
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror}); fix this or restore it") from None
        except EOFError:
            raise DataError(
                f"{self.path}: has been shortened while it was in use; restore it or prepare again"
            ) from None

    def read_ahead(self, offset: int, size: int) -> None:
        """Let the system begin to read ``size`` bytes from ``offset`` on."""
        read_ahead(self._descriptor, offset, size)

    def expect_random(self) -> None:
        """Tell the system that samples are read in random order from now on."""
        expect_random(self._descriptor)

    def _look(self) -> FileState:
        status = os.fstat(self._descriptor)
        return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def sha256(self) -> str:
        """The sha256 of the file's bytes, in hexadecimal digits."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return digest(file, "sha256")


def verify(folder: Path, shard: Shard) -> None:
    """Compare a shard's bytes with the manifest.

    Raises:
        DataError: the file is missing, or differs from the one in the manifest.
    """
    with ShardFile(folder, shard) as file:
        file.verify()
