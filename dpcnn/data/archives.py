"""Unpack known files of archives. All archives are untrusted."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from dpcnn.base.files import Folder
from dpcnn.data.inputs import reason
from dpcnn.errors import DataError

MOST_MEMBER = 1 << 29
"""The most bytes of a file in an archive: those of the known data sets are smaller."""


def unpack(folder: Path, archive: str, names: Collection[str]) -> None:
    """Unpack files of an archive in a folder, .zip or .tar.gz, into this folder.

    Args:
        names: of the files, which may lie in any folder of the archive.

    Raises:
        DataError: the archive is damaged or of another format.
    """
    members = _of_zip if archive.endswith(".zip") else _of_tar
    try:
        with Folder(folder) as opened:
            for name, source in members(folder / archive, names):
                opened.remove(name)
                with opened.appending(name) as file:
                    shutil.copyfileobj(source, file)
    except (OSError, EOFError, RuntimeError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(f"{folder / archive}: not a whole archive ({reason(error)}); remove it and try again") from None


def _of_tar(path: Path, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The plain files with these names, with their content."""
    with tarfile.open(path, "r:gz") as members:
        for member in members:
            name = PurePosixPath(member.name).name
            known = name in names and member.isfile() and member.size <= MOST_MEMBER
            source = members.extractfile(member) if known else None
            if source:
                yield name, source


def _of_zip(path: Path, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
    """The files with these names, with their content; a link is a file with the name of its target."""
    with zipfile.ZipFile(path) as members:
        for member in members.infolist():
            name = PurePosixPath(member.filename).name
            if name in names and not member.is_dir() and member.file_size <= MOST_MEMBER:
                with members.open(member) as source:
                    yield name, source
