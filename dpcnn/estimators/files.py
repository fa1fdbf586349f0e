"""Picture files in place of arrays."""

from pathlib import Path
from typing import Any

from dpcnn.data.dataset import find_data
from dpcnn.errors import DataError


def file_path(name: Any) -> Path:
    """The path of a file or folder.

    Raises:
        DataError: it is no name.
    """
    if not isinstance(name, str | Path) or not str(name) or "\0" in str(name):
        raise DataError(f"expected the name of a file or folder, not {repr(name)[:80]}")
    return Path(name)


def picture_paths(X: Any) -> list[Path]:
    """The files and folders of pictures that X names; empty if X is an array, or the name or folder of a data set.

    A list always means files and folders. A single name means a data set, if there is one.

    Raises:
        DataError: there is nothing of this name.
    """
    if isinstance(X, list | tuple) and all(isinstance(path, str | Path) for path in X):
        return [file_path(path) for path in X]
    if not isinstance(X, str | Path):
        return []
    path = file_path(X)
    try:
        find_data(str(path))
    except DataError as error:
        if path.exists():
            return [path]
        raise DataError(f"{error}; and there is no picture file or folder {str(X)!r}") from None
    return []
