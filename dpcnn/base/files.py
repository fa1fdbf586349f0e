"""Every file that this program reads and writes by itself goes through here.

Folders and files may come from somebody else. So dpcnn reads plain files only, and no pipe or device, which could
hang. It writes a new file under an unpredictable name, relative to an open folder, and moves it to its
place when it is whole; and no link is followed on the way, as it could lead out of the folder.

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
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

MOST_TEXT, MOST_JSON = 64 << 20, 4 << 20
"""Bytes of a text of many lines, such as a run's metrics, and of one JSON value that are read at most.

JSON takes up to 30 times as much memory as text.
"""

MOST_RECIPE = 1 << 20
"""Bytes of a recipe or a run's config.toml."""

HARD_LINK = "has another name too, a hard link: copy it"

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
    _check_plain(os.stat(path).st_mode, path)  # first: opening alone can make a device do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        _check_plain(os.fstat(descriptor).st_mode, path)
    except OSError:
        file.close()
        raise
    return file


def write_file(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file in one move: it has the old content or the new one, never a part, also after a crash."""
    with Folder(path.parent) as folder:
        folder.write(path.name, *chunks)


def _check_plain(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a plain file", str(path))


class Lock:
    """A lock that is held as long as there is this object; it has no other use."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class Folder:
    """An open folder. Its files are reached through it, and not by their path, in which links may be planted.

    Args:
        path: of the folder; a link to one is followed.
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
        """A folder within this one, which is made if it is not there; no link."""
        with self._named(name):
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._descriptor)
            return Folder(self.path / name, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor))

    def names(self) -> list[str]:
        """The names in the folder, sorted."""
        return sorted(os.listdir(self._descriptor))

    def write(self, name: str, *chunks: bytes | memoryview) -> None:
        """Write a file in one move; an old one may be there, but nothing else than a plain file."""
        temporary = f".{name}.{secrets.token_hex(8)}.part"
        with self._named(name):
            self._check_replaceable(name)
            descriptor = os.open(temporary, _NEW, 0o666, dir_fd=self._descriptor)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
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
        """Make sure that files of these names can be written: each is a plain file under one name, or not there."""
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
        """A plain file of this name alone, open for writing at its end; it is made if it is not there."""
        with self._named(name):
            descriptor = os.open(name, _APPENDED, 0o666, dir_fd=self._descriptor)
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                os.close(descriptor)
                raise OSError(errno.EINVAL, HARD_LINK if found.st_nlink > 1 else "not a plain file")
            return os.fdopen(descriptor, "ab")

    def lock(self, name: str, holder: str) -> "Lock":
        """A lock on this folder, which this process holds until it ends, in whatever way.

        The file system keeps it (flock, which Linux passes on to the server of a network file system).

        Args:
            holder: a line about this process, for those that find the lock taken.

        Raises:
            BlockingIOError: another process holds it; ``strerror`` is the line about that one.
        """
        with self.appending(name) as file:
            self._take(file, name, fcntl.LOCK_EX)
            with self._named(name):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), holder.encode(errors="backslashreplace"))
                return Lock(os.dup(file.fileno()))  # the lock is one of both

    def check_unlocked(self, name: str) -> None:
        """Look whether another process holds that lock, and leave everything as it is.

        Raises:
            BlockingIOError: it does, as with :meth:`lock`.
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
            told = read_bytes(self.path / name)[:MOST_HOLDER].decode(errors="replace")
            raise BlockingIOError(errno.EAGAIN, told, str(self.path / name)) from None

    def remove(self, name: str) -> None:
        """Remove a file or a link, if it is there."""
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
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPENDED = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
