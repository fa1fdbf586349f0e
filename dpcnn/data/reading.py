"""The kinds of sources, each with its reader."""

import os
from pathlib import Path

from dpcnn.data.arrays import NPZ_FILE, is_folder_of_arrays, read_arrays_source
from dpcnn.data.folders import folders_in, read_pictures_folder, read_pictures_list
from dpcnn.data.kinds import first_picture
from dpcnn.data.source_options import SourceOptions
from dpcnn.data.sources import Source
from dpcnn.errors import DataError


def read_source(path: Path, options: SourceOptions | None = None) -> Source:
    """Read a source of arrays or of pictures.

    Args:
        path: of a file or folder; or FILE:A,B of an HDF5 file and the names of its arrays of images and labels.

    Raises:
        DataError: nothing known is there, or what is there is damaged.
        ConfigError: the options do not fit it.
    """
    options = options or SourceOptions()
    file, _, names = str(path).rpartition(":")
    if os.path.isfile(file) and not path.exists():
        return read_arrays_source(Path(file), options, names.split(","))
    if path.is_file():
        pictures = path.suffix.lower() == ".csv"
        return read_pictures_list(path, options) if pictures else read_arrays_source(path, options)
    if not path.is_dir():
        problem = "not a folder or a plain file" if path.exists() else "no such file or folder"
        raise DataError(f"{path}: {problem}; expected {NPZ_FILE}, an HDF5 or CSV file, or a folder")
    if is_folder_of_arrays(path) or not (folders_in(path) or first_picture(path)):
        return read_arrays_source(path, options)
    return read_pictures_folder(path, options)
