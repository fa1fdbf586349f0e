"""The open files of data shards."""

import os
from pathlib import Path
from types import TracebackType

from dpcnn.base.files import open_plain
from dpcnn.data.inputs import digest
from dpcnn.data.shards import MANIFEST, Shard
from dpcnn.errors import DataError


class ShardFile:
    """A shard's open file: the bytes that are verified and those that are read are of the same one.

    Attributes:
        path: for messages.
        size: in bytes, when it was opened.

    Args:
        folder: of the data set.
        shard: which one.

    Raises:
        DataError: there is no such plain file.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path, self._shard, self._descriptor = folder / shard.file, shard, -1
        try:
            with open_plain(self.path) as file:
                self._descriptor = os.dup(file.fileno())
            self._state = self._look()
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror}, but {MANIFEST} names it; restore it or prepare again"
            ) from None
        self.size = self._state[0]

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
        """A path by which a library can open this open file, whatever has become of its name."""
        return f"/dev/fd/{self._descriptor}"

    def verify(self) -> None:
        """Compare the file's bytes with the manifest; DataError if they differ."""
        found = self.sha256()
        if found != self._shard.sha256:
            raise DataError(
                f"{self.path}: damaged or exchanged: its sha256 is {found[:16]}.., {MANIFEST} says "
                f"{self._shard.sha256[:16]}..; restore it or prepare again"
            )

    def check_unchanged(self) -> None:
        """Verify the file again if its size or its time of change is another one than when it was opened.

        Raises:
            DataError: its bytes have changed.
        """
        found = self._look()
        if found == self._state:
            return
        if self.sha256() != self._shard.sha256:
            raise DataError(
                f"{self.path}: was changed while it was in use: its sha256 is no longer that of {MANIFEST}; "
                "restore it or prepare again, then continue with --resume"
            )
        self._state = found

    def read(self, out: memoryview, place: int) -> None:
        """Fill ``out`` with the bytes from ``place`` on.

        Raises:
            DataError: they can't be read, or have gone.
        """
        while out.nbytes:
            try:
                count = os.preadv(self._descriptor, [out], place)
            except OSError as error:
                raise DataError(f"{self.path}: can't be read ({error.strerror}); fix this or restore it") from None
            if not count:
                raise DataError(f"{self.path}: has been shortened while it was in use; restore it or prepare again")
            out, place = out[count:], place + count

    def _look(self) -> tuple[int, int]:
        found = os.fstat(self._descriptor)
        return found.st_size, found.st_mtime_ns

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
