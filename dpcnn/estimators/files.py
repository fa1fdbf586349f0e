"""Picture files in place of arrays."""

import os
from pathlib import Path
from typing import Any

from dpcnn.data.dataset import find_data
from dpcnn.errors import DataError


def picture_paths(X: Any) -> list[Path]:
    """The files and folders of pictures that X names; empty if X is an array, or the name or folder of a data set.

    A list always means files and folders. A single name means a data set, if there is one.

    Raises:
        DataError: there is nothing of this name.
    """
    if isinstance(X, list | tuple) and all(isinstance(path, str | Path) for path in X):
        return [Path(path) for path in X]
    if not isinstance(X, str | Path):
        return []
    try:
        find_data(str(X))
    except DataError as error:
        if os.path.exists(X):
            return [Path(X)]
        raise DataError(f"{error}; and there is no picture file or folder {str(X)!r}") from None
    return []
