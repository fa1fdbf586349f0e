"""CIFAR-10 and CIFAR-100 in their binary form.

Krizhevsky, "Learning multiple layers of features from tiny images" (2009). A sample is its label, one byte, and its
pixels, 3072 bytes (3, 32, 32). A sample of CIFAR-100 has the number of its superclass before the label.
"""

import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from dpcnn.base.files import Folder
from dpcnn.data.inputs import Input, reason
from dpcnn.data.shards import Images
from dpcnn.errors import DataError

CIFAR10 = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR100 = {"train": ("train.bin",), "test": ("test.bin",)}
NAMES_OF_10, NAMES_OF_100 = "batches.meta.txt", "fine_label_names.txt"
MEMBERS = {*CIFAR10["train"], *CIFAR10["test"], *CIFAR100["train"], *CIFAR100["test"], NAMES_OF_10, NAMES_OF_100}
"""The files of the archives that are unpacked."""

MOST_MEMBER = 1 << 28
"""The most bytes of a file in an archive; the largest one has 50,000 samples of 3,074 bytes."""

PIXELS = 3 * 32 * 32


def cifar_files(folder: Path, split: str) -> list[Path]:
    """The files of a split in a folder, of CIFAR-10 or CIFAR-100; none if one is missing."""
    for known in (CIFAR10, CIFAR100):
        paths = [folder / name for name in known[split]]
        if all(path.is_file() for path in paths):
            return paths
    return []


def read_cifar(files: Sequence[Input]) -> tuple[Images, Images]:
    """Read the samples of files: images (n, 32, 32, 3) and labels (n,).

    Raises:
        DataError: a file has no samples, or only a part of the last one.
    """
    before = 2 if files[0].path.name in CIFAR100["train"] + CIFAR100["test"] else 1
    rows = np.concatenate([_rows(file, before + PIXELS) for file in files])
    pixels = rows[:, before:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(rows[:, before - 1])


def _rows(file: Input, size: int) -> Images:
    """The samples (n, size) of a file."""
    rows = np.empty((file.size // size, size), np.uint8)
    if not len(rows) or file.size % size or file.fill(rows.reshape(-1)) < rows.size or file.read(1):
        raise DataError(f"{file.path}: {file.size:,} bytes, but expected samples of {size} bytes; get the file again")
    return rows


def unpack(folder: Path, archive: str) -> None:
    """Unpack the known files of an archive in a folder, into this folder.

    Raises:
        DataError: it is not such an archive.
    """
    try:
        with Folder(folder) as opened, tarfile.open(folder / archive, "r:gz") as members:
            for member in members:
                name = PurePosixPath(member.name).name
                known = name in MEMBERS and member.isfile() and member.size <= MOST_MEMBER
                source = members.extractfile(member) if known else None
                if source:
                    opened.remove(name)
                    with opened.appending(name) as file:
                        shutil.copyfileobj(source, file)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{folder / archive}: not a whole archive ({reason(error)}); remove it and try again") from None
