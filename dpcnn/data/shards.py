"""A data set's folder: HDF5 shards, and ``manifest.json`` with their checksums.

::

    manifest.json       counts, shapes, the sha256 of every shard, and the source
    train-00.h5 ..      each with "images" (samples, H, W, C) and "labels" (samples,), both uint8
    test-00.h5 ..

The number of shards is independent of the number of ranks.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import fields
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_JSON, Folder, open_plain, read_bytes
from dpcnn.data.inputs import digest, reason
from dpcnn.errors import DataError

Images = NDArray[np.uint8]

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
MOST_SIDE, MOST_CLASSES = 1 << 16, 256
MOST_BYTES = 1 << 40
"""The most bytes of a split's images."""

MOST_SHARDS = 400
"""The most shards of a split: those of contiguous sets stay open, and many systems allow a process 1,024 open files."""


@dataclass(frozen=True)
class Shard:
    """One file of a split: its name, its samples, the sha256 of its bytes."""

    file: str
    samples: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a data set's folder.

    Attributes:
        name: of the data set.
        image_shape: (H, W, C).
        classes: labels are 0 .. classes - 1.
        compressed: whether shards are compressed and read into memory, or contiguous and read sample by sample.
        splits: "train" and "test", each a list of shards in the order of samples.
        content: for each split, the sha256 of all its images' bytes and then all its labels':
            independent of how it is sharded.
        source: the origin of the data, for people.
    """

    name: str
    image_shape: tuple[int, int, int]
    classes: int
    compressed: bool
    splits: dict[str, tuple[Shard, ...]]
    content: dict[str, str]
    source: dict[str, str]

    @property
    def image_bytes(self) -> int:
        """The bytes of an image."""
        return math.prod(self.image_shape)

    @property
    def checksum(self) -> str:
        """The data set's identity: a sha256 of its content, independent of its name and its shards."""
        return _sha256([list(self.image_shape), self.classes, sorted(self.content.items())])

    @property
    def digest(self) -> str:
        """A sha256 of the manifest, which includes the sha256 of each shard."""
        return _sha256(asdict(self))

    def samples(self, split: str) -> int:
        """The number of samples of a split."""
        return sum(shard.samples for shard in self.splits[split])

    def bounds(self, split: str) -> NDArray[Any]:
        """The index of each shard's first sample, and the end: (shards + 1,)."""
        return np.cumsum([0] + [shard.samples for shard in self.splits[split]])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` as the last file, so that a folder with one is complete.

    Raises:
        DataError: the manifest is wrong.
        OSError: it can't be written.
    """
    content = json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1).encode() + b"\n"
    parse_manifest(folder / MANIFEST, content)
    with Folder(folder) as opened:
        opened.write(MANIFEST, content)


def read_manifest(folder: Path) -> Manifest:
    """The checked manifest of a folder.

    Raises:
        DataError: there is none, or it is wrong.
    """
    path = folder / MANIFEST
    try:
        content = read_bytes(path, MOST_JSON)
    except OSError as error:
        raise DataError(
            f"{path}: can't be read ({error.strerror}); a data set is a folder made by: python -m dpcnn.data prepare"
        ) from None
    return parse_manifest(path, content)


def parse_manifest(path: Path, content: bytes) -> Manifest:
    """Read a manifest from its bytes.

    Args:
        path: for messages.

    Raises:
        DataError: it is wrong.
    """
    try:
        return _parse(Table(load_json(content)))
    except FieldError as error:
        raise DataError(
            f"{path}: not a manifest of format {FORMAT} ({reason(error)}); prepare the data set again"
        ) from None


def _parse(table: Table) -> Manifest:
    table.integer("format", FORMAT, FORMAT)
    height, width, channels = table.integers("image_shape", 3, 1, MOST_SIDE)
    splits = {split: _parse_split(table.table("splits"), split, height * width * channels) for split in SPLITS}
    names = [shard.file for shards in splits.values() for shard in shards]
    if len(set(names)) < len(names):
        raise FieldError("splits: a file occurs twice")
    return Manifest(
        name=table.name("name"),
        image_shape=(height, width, channels),
        classes=table.integer("classes", 1, MOST_CLASSES),
        compressed=table.flag("compressed"),
        splits=splits,
        content={split: table.table("content").sha256(split) for split in SPLITS},
        source=_parse_source(table.table("source")),
    )


def _parse_split(table: Table, split: str, image_bytes: int) -> tuple[Shard, ...]:
    shards = tuple(_parse_shard(shard) for shard in table.tables(split, MOST_SHARDS))
    if not shards:
        raise FieldError(f"splits.{split}: expected at least one shard")
    if sum(shard.samples for shard in shards) * image_bytes > MOST_BYTES:
        raise FieldError(f"split {split} is too large")
    return shards


def _parse_shard(table: Table) -> Shard:
    file = table.name("file")
    if not re.fullmatch(r"[\w-][\w.-]*\.h5", file):
        raise FieldError(f"invalid file name {file!r}")
    return Shard(file, table.integer("samples", 1, MOST_BYTES), table.sha256("sha256"))


def _parse_source(table: Table) -> dict[str, str]:
    """The names of the source and their values."""
    return {fields.name(key, "source"): table.name(key) for key in table}


class ShardFile:
    """A shard's open file: the verified bytes and the bytes that are read belong to the same file.

    Attributes:
        path: for messages.
        size: in bytes, when it was opened.

    Args:
        folder: of the data set.
        shard: its entry in the manifest.

    Raises:
        DataError: the plain file does not exist.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path, self._shard, self._descriptor = folder / shard.file, shard, -1
        try:
            with open_plain(self.path) as file:
                self._descriptor = os.dup(file.fileno())
            self._state = self._look()
        except OSError as error:
            raise DataError(
                f"{self.path}: {error.strerror}, but {MANIFEST} names it; restore it or prepare again"
            ) from None
        self.size = self._state[0]

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing more can be read."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    @property
    def name(self) -> str:
        """A path by which a library can open this file, even if it has been renamed or removed."""
        return f"/dev/fd/{self._descriptor}"

    def verify(self) -> None:
        """Compare the file's bytes with the manifest; DataError if they differ."""
        actual = self.sha256()
        if actual != self._shard.sha256:
            raise DataError(
                f"{self.path}: damaged or replaced: its sha256 is {actual[:16]}.., {MANIFEST} says "
                f"{self._shard.sha256[:16]}..; restore it or prepare again"
            )

    def check_unchanged(self) -> None:
        """Verify the file again if its size or its time of change has changed since it was opened.

        Raises:
            DataError: its bytes have changed.
        """
        state = self._look()
        if state == self._state:
            return
        if self.sha256() != self._shard.sha256:
            raise DataError(
                f"{self.path}: was changed while it was in use: its sha256 is no longer that of {MANIFEST}; "
                "restore it or prepare again, then continue with --resume"
            )
        self._state = state

    def read(self, out: memoryview, offset: int) -> None:
        """Fill ``out`` with the bytes from ``offset`` on.

        Raises:
            DataError: they can't be read, or are missing.
        """
        while out.nbytes:
            try:
                count = os.preadv(self._descriptor, [out], offset)
            except OSError as error:
                raise DataError(f"{self.path}: can't be read ({error.strerror}); fix this or restore it") from None
            if not count:
                raise DataError(f"{self.path}: has been shortened while it was in use; restore it or prepare again")
            out, offset = out[count:], offset + count

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns

    def sha256(self) -> str:
        """The sha256 of the file's bytes, in hexadecimal digits."""
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            return digest(file, "sha256")


def verify(folder: Path, shard: Shard) -> None:
    """Compare a shard's bytes with the manifest.

    Raises:
        DataError: the file is missing, or differs from the one in the manifest.
    """
    with ShardFile(folder, shard) as file:
        file.verify()
