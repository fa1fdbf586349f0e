"""All files that dpcnn itself reads and writes go through this module.

Folders and files may come from others. So dpcnn reads only plain files: a pipe or a device could hang. It writes a
new file under an unpredictable name, relative to an open folder, and renames it when it is complete. It follows no
link, which could lead out of the folder.

All functions raise OSError with the path and the reason.
"""

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

MOST_TEXT, MOST_JSON = 64 << 20, 4 << 20
"""The most bytes of a text of many lines, such as a run's metrics, and of one JSON value.

JSON takes up to 30 times as much memory as text.
"""

MOST_RECIPE = 1 << 20
"""The most bytes of a recipe or a run's config.toml."""

HARD_LINK = "has another name (a hard link): copy it"

MOST_HOLDER = 300
"""The most bytes of the description in a lock."""


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The bytes of a plain file of at most ``most`` bytes."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"{size:,} bytes; at most {most:,} are read", str(path))
        return file.read(size)


def open_plain(path: Path) -> BinaryIO:
    """A plain file, open for reading. A link to one is followed: nothing is written through it."""
    _check_plain(os.stat(path).st_mode, path)  # first: opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _check_plain(os.fstat(descriptor).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def read_at(descriptor: int, out: memoryview, offset: int) -> None:
    """Fill ``out`` with the bytes of an open file from ``offset`` on.

    Raises:
        OSError: they can't be read.
        EOFError: the file is too short.
    """
    while out.nbytes:
        count = os.preadv(descriptor, [out], offset)
        if not count:
            raise EOFError("the file is too short")
        out, offset = out[count:], offset + count


def read_ahead(descriptor: int, offset: int, size: int) -> None:
    """Let the system begin to read these bytes of an open file into its page cache, and return at once."""
    with suppress(OSError):  # it is only a hint
        os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def expect_random(descriptor: int) -> None:
    """Tell the system that an open file is read in random order, so that it reads nothing that is not requested."""
    with suppress(OSError):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def write_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file in one move: it has the old content or the new one, never a part, also after a crash."""
    with Folder(path.parent) as folder:
        folder.write(path.name, *chunks)


def _check_plain(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))


class Lock:
    """A lock, held until this object is deleted."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class Folder:
    """An open folder. Its files are opened relative to it, not by their path, which may contain planted links.

    Args:
        path: of the folder; a link is followed.
    """

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        self._descriptor = os.open(path, _FOLDER) if descriptor is None else descriptor

    def __enter__(self) -> "Folder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    def inside(self, name: str) -> "Folder":
        """Open a folder within this one; create it if it is missing. A link is refused."""
        with self._named(name):
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._descriptor)
            return Folder(self.path / name, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor))

    def names(self) -> list[str]:
        """The names in the folder, sorted."""
        return sorted(os.listdir(self._descriptor))

    def write(self, name: str, *chunks: bytes | memoryview) -> None:
        """Write a file in one move. It may replace a plain file, but nothing else."""
        with self.replacing(name) as file:
            for chunk in chunks:
                file.write(chunk)

    @contextmanager
    def replacing(self, name: str) -> Iterator[BufferedRandom]:
        """A context that opens an empty file to write and read; the file gets its name in one move at the end.

        If the block fails, there is no such file, and an old one is untouched.
        """
        temporary = f".{name}.{secrets.token_hex(8)}.part"
        with self._named(name):
            self._check_replaceable(name)
            descriptor = os.open(temporary, _NEW, 0o666, dir_fd=self._descriptor)
            try:
                with os.fdopen(descriptor, "w+b") as file:
                    yield file
                    file.flush()
                    os.fsync(descriptor)
                self._move(temporary, name)
            except BaseException:
                self.remove(temporary)
                raise

    def point(self, name: str, target: str) -> None:
        """Make a link to another file of this folder, in one move."""
        temporary = f".{name}.{secrets.token_hex(8)}.part"
        with self._named(name):
            os.symlink(target, temporary, dir_fd=self._descriptor)
            try:
                self._move(temporary, name)
            except OSError:
                self.remove(temporary)
                raise

    def check(self, *names: str) -> None:
        """Make sure that files of these names can be written: each is absent, or a plain file under one name."""
        for name in names:
            with self._named(name):
                self._check_replaceable(name)
                if self._names_of(name) > 1:
                    raise OSError(errno.EINVAL, HARD_LINK)

    def _names_of(self, name: str) -> int:
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_nlink
        except FileNotFoundError:
            return 0

    def appending(self, name: str) -> BinaryIO:
        """Open a plain file without other names for appending; create it if it is missing."""
        with self._named(name):
            descriptor = os.open(name, _APPENDED, 0o666, dir_fd=self._descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                os.close(descriptor)
                raise OSError(errno.EINVAL, HARD_LINK if status.st_nlink > 1 else "not a plain file")
            return os.fdopen(descriptor, "ab")

    def lock(self, name: str, holder: str) -> "Lock":
        """Lock this folder until the lock is deleted or the process ends.

        The file system keeps the lock (flock, which Linux passes on to the server of a network file system).

        Args:
            holder: a line about this process, for the error message of others.

        Raises:
            BlockingIOError: another process holds the lock; ``strerror`` is its line.
        """
        with self.appending(name) as file:
            self._take(file, name, fcntl.LOCK_EX)
            with self._named(name):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), holder.encode(errors="backslashreplace"))
                return Lock(os.dup(file.fileno()))  # both descriptors share the lock

    def check_unlocked(self, name: str) -> None:
        """Make sure that no other process holds that lock; change nothing.

        Raises:
            BlockingIOError: another process holds it, as in :meth:`lock`.
        """
        try:
            with self._named(name), open_plain(self.path / name) as file:
                self._take(file, name, fcntl.LOCK_SH)
        except FileNotFoundError:
            return

    def _take(self, file: BinaryIO, name: str, kind: int) -> None:
        try:
            with self._named(name):
                fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.2)  # the process that has just taken it may still be writing
            holder = read_bytes(self.path / name)[:MOST_HOLDER].decode(errors="replace")
            raise BlockingIOError(errno.EAGAIN, holder, str(self.path / name)) from None

    def remove(self, name: str) -> None:
        """Remove a file or a link, if it exists."""
        with self._named(name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def _move(self, temporary: str, name: str) -> None:
        os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        os.fsync(self._descriptor)

    def _check_replaceable(self, name: str) -> None:
        try:
            mode = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "")
        _check_plain(mode, self.path / name)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Put the whole path into the system's error about a name in this folder."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, _WHY.get(error.errno, error.strerror), str(self.path / name)) from None


_WHY: dict[Any, str] = {errno.ELOOP: "is a link, which is not followed", errno.ENXIO: "not a plain file"}
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPENDED = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
