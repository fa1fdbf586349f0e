"""CIFAR-10 and CIFAR-100 in their binary form.

Krizhevsky, "Learning multiple layers of features from tiny images" (2009). A sample is its label, one byte, and its
pixels, 3072 bytes (3, 32, 32). A sample of CIFAR-100 has the number of its superclass before the label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpcnn.data.inputs import Input
from dpcnn.data.shards import Images
from dpcnn.errors import DataError

CIFAR10 = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR100 = {"train": ("train.bin",), "test": ("test.bin",)}
NAMES_OF_10, NAMES_OF_100 = "batches.meta.txt", "fine_label_names.txt"
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
        DataError: a file has no samples, or its last sample is incomplete.
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
