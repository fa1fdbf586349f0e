"""A data set's folder: HDF5 shards, and ``manifest.json``, which vouches for every byte of them.

::

    manifest.json       what is here: counts, shapes, the sha256 of every shard, where it came from
    train-00.h5 ..      each with "images" (samples, H, W, C) and "labels" (samples,), both uint8
    test-00.h5 ..

The number of shards has nothing to do with the number of ranks.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dpcnn.errors import DataError

Images = NDArray[np.uint8]

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
CHUNK_BYTES = 1 << 20
LIMIT = 1 << 40  # bytes of a split: no honest manifest asks for more


@dataclass(frozen=True)
class Shard:
    """One file of a split: its name, its samples, the sha256 of its bytes."""

    file: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a data set's folder holds.

    Attributes:
        name: of the data set.
        image_shape: (H, W, C).
        classes: labels are 0 .. classes - 1.
        compressed: whether shards are compressed, and so are read into memory, or contiguous, and
            so are mapped from the files.
        splits: "train" and "test", each a list of shards in the order of samples.
        content: for each split, the sha256 of all its images' bytes and then all its labels':
            independent of how it is sharded.
        source: where the data came from, for people.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    compressed: bool
    splits: dict[str, tuple[Shard, ...]]
    content: dict[str, str]
    source: dict[str, str]

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])

    @property
    def checksum(self) -> str:
        """The data set's identity: a sha256 of its content, however it is sharded."""
        told = [self.name, list(self.image_shape), self.classes, sorted(self.content.items())]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, last of all files, so that a folder with one is whole."""
    text = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a folder.

    Raises:
        DataError: there is none, or it is not as it must be.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: can't be read ({error}); a data set is a folder made by: python -m dpcnn.data prepare"
        ) from None
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a manifest of format {FORMAT} ({error}); prepare the data set again") from None


def _parse(found: Any) -> Manifest:
    if found["format"] != FORMAT:
        raise ValueError(f"format {found['format']!r}")
    shape = tuple(_count(length, 1 << 16) for length in found["image_shape"])
    splits = {}
    for split in SPLITS:
        splits[split] = tuple(_parse_shard(shard) for shard in found["splits"][split])
        if sum(shard.samples for shard in splits[split]) * int(np.prod(shape)) > LIMIT:
            raise ValueError(f"split {split} is too large")
    if len(shape) != 3:
        raise ValueError(f"image_shape {shape}, not (H, W, C)")
    content = {split: _sha256(found["content"][split]) for split in SPLITS}
    source = {str(key): str(value) for key, value in found["source"].items()}
    classes = _count(found["classes"], 256)
    return Manifest(str(found["name"]), shape, classes, bool(found["compressed"]), splits, content, source)


def _parse_shard(found: Any) -> Shard:
    file = str(found["file"])
    if not re.fullmatch(r"[\w-][\w.-]*\.h5", file):
        raise ValueError(f"shard name {file!r}")
    return Shard(file, _count(found["samples"], LIMIT), _sha256(found["sha256"]))


def _count(value: Any, most: int) -> int:
    if not isinstance(value, int) or not 0 < value <= most:
        raise ValueError(f"count {value!r}")
    return value


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"sha256 {value!r}")
    return value


def write_shard(path: Path, images: Images, labels: Images, compressed: bool) -> Shard:
    """Write one shard: its bytes depend on nothing but the arguments and the HDF5 library."""
    filters: dict[str, Any] = {}
    if compressed:
        rows = max(1, min(len(images), CHUNK_BYTES // images[0].nbytes))
        filters = {"chunks": (rows, *images.shape[1:]), "compression": "gzip", "compression_opts": 9}
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        file.create_dataset("images", data=images, track_times=False, **filters)
        file.create_dataset("labels", data=labels, track_times=False)
    return Shard(path.name, len(images), file_sha256(path))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, shard: Shard) -> None:
    """Hold a shard's bytes against the manifest.

    Raises:
        DataError: the file is missing, or is not the one that the manifest tells of.
    """
    path = folder / shard.file
    try:
        found = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}, but {MANIFEST} names it; restore it or prepare again") from None
    if found != shard.sha256:
        raise DataError(
            f"{path}: damaged or exchanged: its sha256 is {found[:16]}.., {MANIFEST} says {shard.sha256[:16]}..; "
            "restore it or prepare again"
        )


def open_shard(folder: Path, shard: Shard, manifest: Manifest) -> tuple[h5py.File, h5py.Dataset, h5py.Dataset]:
    """The open file of a verified shard, and its images and labels, checked against the manifest.

    Raises:
        DataError: it is not HDF5, or holds something else than the manifest tells.
    """
    path = folder / shard.file
    try:
        file = h5py.File(path, "r", locking=False)  # locks fail on many network file systems
    except OSError as error:
        raise DataError(f"{path}: not an HDF5 file ({error}); prepare the data set again") from None
    images = _dataset(path, file, "images", (shard.samples, *manifest.image_shape))
    return file, images, _dataset(path, file, "labels", (shard.samples,))


def _dataset(path: Path, file: h5py.File, name: str, shape: Sequence[int]) -> h5py.Dataset:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise DataError(f"{path}: holds no dataset {name!r} of its own; prepare the data set again")
    dataset = file[name]
    if dataset.shape != tuple(shape) or dataset.dtype != np.uint8:
        raise DataError(
            f"{path}: {name} are {dataset.dtype} {dataset.shape}, but {MANIFEST} says uint8 {tuple(shape)}; "
            "prepare the data set again"
        )
    if dataset.is_virtual or dataset.external or dataset.compression not in (None, "gzip"):
        raise DataError(f"{path}: {name} lie outside the file or in a foreign compression; prepare the data set again")
    return dataset


def map_images(path: Path, dataset: h5py.Dataset) -> Images | None:
    """The images of a contiguous shard, mapped from the file; None if they aren't contiguous."""
    offset = dataset.id.get_offset()
    if offset is None:
        return None
    return np.memmap(path, np.uint8, "r", offset, dataset.shape)
