"""EMNIST: handwritten digits and letters, in six divisions of the same samples.

Cohen, Afshar, Tapson and van Schaik, "EMNIST: an extension of MNIST to handwritten letters" (2017). The files are IDX;
the rows of their images are the columns of the characters.
"""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits

import numpy as np

from dpcnn.data.formats import read_idx
from dpcnn.data.inputs import Input
from dpcnn.data.shards import Images
from dpcnn.errors import DataError

LETTERS = "letters"
MERGED = digits + ascii_uppercase + "abdefghnqrt"
"""Classes in which lower-case letters that look like their capitals count as these."""

CLASSES = {
    "balanced": MERGED,
    "byclass": digits + ascii_uppercase + ascii_lowercase,
    "bymerge": MERGED,
    "digits": digits,
    LETTERS: ascii_lowercase,
    "mnist": digits,
}
"""The characters of the classes of each division, in their order; those of letters stand for both cases."""


def names_of(division: str, split: str) -> tuple[str, str]:
    """The names of the files of a split: images and labels."""
    stem = f"emnist-{division}-{split}"
    return f"{stem}-images-idx3-ubyte.gz", f"{stem}-labels-idx1-ubyte.gz"


def emnist_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder with one division; none if one is missing, or if there are several divisions."""
    each = ([folder / name for name in names_of(division, split)] for division in CLASSES)
    found = [paths for paths in each if all(path.is_file() for path in paths)]
    return found[0] if len(found) == 1 else []


def read_emnist(files: Sequence[Input]) -> tuple[Images, Images]:
    """Read the samples of a split: images (n, 28, 28), upright, and labels (n,) from 0.

    Raises:
        DataError: a file is damaged.
    """
    images, labels = map(read_idx, files)
    if images.ndim != 3:
        raise DataError(f"{files[0].path}: expected images (n, H, W), not {images.shape}; get the file again")
    if f"-{LETTERS}-" in files[1].path.name:
        if not labels.all():
            raise DataError(f"{files[1].path}: has the label 0, but those of letters start at 1; get the file again")
        labels = labels - np.uint8(1)
    return images.swapaxes(1, 2), labels
