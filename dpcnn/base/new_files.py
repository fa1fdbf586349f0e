"""Checks of the files that a command is going to write, before its work begins."""

from pathlib import Path

from dpcnn.base.files import open_plain
from dpcnn.errors import CheckpointError, ConfigError

HTML, JSON = b"<!doctype html>", b"{"
"""The first bytes of the pages, and of the results, that dpcnn writes."""


def check_free(out: Path) -> None:
    """Make sure that nothing exists at the path of a file that a command is going to write.

    Raises:
        CheckpointError: something exists there.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out}: exists; give another --out, or delete it")


def check_replaceable(flag: str, out: Path, start: bytes) -> None:
    """Make sure that a command may write a file again: that its folder exists, and an old file is of the same kind.

    Args:
        start: the first bytes of all files of this kind.

    Raises:
        ConfigError: there is no folder for it, or something else exists there.
    """
    if not out.parent.is_dir():
        raise ConfigError(f"{flag}: no such folder: {out.parent}; create it")
    replaceable = not out.exists() or (out.is_file() and _head(out, len(start)) in (start, b""))
    if out.is_symlink() or not replaceable:
        raise ConfigError(f"{flag}: {out}: exists, and this command did not write it; give another name, or delete it")


def _head(path: Path, count: int) -> bytes:
    with open_plain(path) as file:
        return file.read(count)
