"""The names of the picture files of a data set, in a text file beside each shard: a line per sample, in their order.

They are for people and no part of the data set: no checksum includes them. They are not trusted.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.fields import MOST_NAME
from dpcnn.base.files import read_bytes, write_file
from dpcnn.data.shards import Manifest, Shard
from dpcnn.errors import DataError, printable

MOST_BYTES = 1 << 28
"""The most bytes of a file of names that are read."""


def write_names(shard: Path, names: Iterable[str]) -> None:
    """Write the names of the samples of a shard, whose path is ``shard``."""
    write_file(shard.with_suffix(".txt"), "".join(f"{_short(name)}\n" for name in names).encode())


def names_of(folder: Path, manifest: Manifest, split: str, indices: Array) -> list[str]:
    """The file of each sample of a split with these indices (n,), relative to the source; empty if there are no names.

    Raises:
        DataError: the names can't be read, or are not as many as the samples.
    """
    bounds = manifest.bounds(split)
    shards = np.searchsorted(bounds, indices, side="right") - 1
    names = {number: _read(folder, manifest.splits[split][number]) for number in np.unique(shards).tolist()}
    if not all(names.values()):
        return []
    return [names[shard][index - bounds[shard]] for shard, index in zip(shards.tolist(), indices.tolist(), strict=True)]


def _read(folder: Path, shard: Shard) -> list[str]:
    """The names of a shard's samples; empty if the data set has none."""
    path = (folder / shard.file).with_suffix(".txt")
    try:
        lines = read_bytes(path, MOST_BYTES).decode(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; delete it, or prepare the data set again") from None
    if len(lines) != shard.samples:
        raise DataError(f"{path}: {len(lines):,} names of {shard.samples:,} samples; delete it, or prepare again")
    return [_short(line) for line in lines]


def _short(name: str) -> str:
    """A name as one line; of a long name its end."""
    return printable(name)[-MOST_NAME:]
