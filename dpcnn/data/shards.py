"""A data set's folder: HDF5 shards, and ``manifest.json`` with their checksums.

::

    manifest.json       counts, shapes, the sha256 of every shard, and the source
    train-00.h5 ..      each with "images" (samples, H, W, C), and "labels": (samples,) of classes, uint8, or
                        uint16 of more than 256; or (samples, K), see dpcnn.data.targets
    test-00.h5 ..

The number of shards is independent of the number of ranks.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import fields
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.base.files import MOST_JSON, Folder, read_bytes
from dpcnn.data.classes import MOST_CLASSES, Names, class_type, parse_names
from dpcnn.data.inputs import reason
from dpcnn.data.pixels import BYTES, parse_pixels, stored_type
from dpcnn.data.targets import LABELS, parse_targets
from dpcnn.errors import DataError
from dpcnn.nn.losses import CLASSES

Images = NDArray[Any]
"""(n, H, W, C), of the types of :data:`dpcnn.data.pixels.WHITE`."""

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
CROP, MNIST = "crop", "mnist"
RESIZE = (CROP, MNIST)
"""Ways in which a picture of any size becomes an image.

"crop": the largest rectangle of the image's proportions around the picture's centre is resized.
"mnist": the character that is drawn in it is centred as in MNIST.
"""

LEAST_DEVIATION = 1e-9
"""A bound below the smallest possible deviation of a channel with two different values, for the largest split."""

MOST_SIDE = 1 << 16
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
        class_names: the name of each class; numbers if the source has none. Labels are indices of it. With other
            targets, the name of each label or value of a sample.
        resize: how a picture becomes an image of this set, see :data:`RESIZE`.
        compressed: whether shards are compressed and read into memory, or contiguous and read sample by sample.
        splits: "train" and "test", each a list of shards in the order of samples.
        content: for each split, the sha256 of all its images' bytes and then all its labels':
            independent of how it is sharded.
        source: the origin of the data, for people.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
        mean, deviation: of the training images, for each channel, of pixels 0..255; a deviation of 0 counts as 1.
            Empty in data sets of older versions.
        pixels: the type of the images' values, one of :data:`dpcnn.data.pixels.WHITE`.
        max_value: the value of white; None for uint8.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: Names
    resize: str
    compressed: bool
    splits: dict[str, tuple[Shard, ...]]
    content: dict[str, str]
    source: dict[str, str]
    targets: str = CLASSES
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    pixels: str = BYTES
    max_value: float | None = None

    @property
    def classes(self) -> int:
        """The number of classes, or, with other targets, of the labels or values of a sample."""
        return len(self.class_names)

    @property
    def image_bytes(self) -> int:
        """The bytes of an image."""
        return math.prod(self.image_shape) * self.images_type.itemsize

    @property
    def images_type(self) -> np.dtype[Any]:
        """The type of the images."""
        return stored_type(self.pixels)

    @property
    def labels_type(self) -> np.dtype[Any]:
        """The type of the labels."""
        return class_type(self.classes) if self.targets == CLASSES else LABELS[self.targets]

    def labels_shape(self, samples: int) -> tuple[int, ...]:
        """The shape of the labels of so many samples: (samples,), or (samples, K) with other targets than classes."""
        return (samples,) if self.targets == CLASSES else (samples, self.classes)

    @property
    def sample_bytes(self) -> int:
        """The bytes of an image and its labels."""
        return self.image_bytes + math.prod(self.labels_shape(1)) * self.labels_type.itemsize

    @property
    def checksum(self) -> str:
        """The data set's identity: a sha256 of its content, independent of its name and its shards."""
        kind: list[Any] = [] if self.targets == CLASSES else [self.targets]
        kind += [] if self.pixels == BYTES else [self.pixels, self.max_value]
        return _sha256([list(self.image_shape), self.classes, sorted(self.content.items()), *kind])

    @property
    def digest(self) -> str:
        """A sha256 of the manifest, which includes the sha256 of each shard."""
        return _sha256(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """The values for JSON. For uint8 images, the type is omitted, as in files of older versions."""
        values = asdict(self)
        return {
            key: value for key, value in values.items() if self.pixels != BYTES or key not in ("pixels", "max_value")
        }

    @property
    def shards(self) -> list[Shard]:
        """The shards of all splits."""
        return [shard for split in SPLITS for shard in self.splits[split]]

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
    content = (
        json.dumps({"format": FORMAT, "classes": manifest.classes, **manifest.as_dict()}, indent=1).encode() + b"\n"
    )
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
            f"{path}: can't be read ({error.strerror}); a data set is a folder made by: dpcnn data prepare"
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
    pixels, max_value = parse_pixels(table)
    image_bytes = height * width * channels * stored_type(pixels).itemsize
    splits = {split: _parse_split(table.table("splits"), split, image_bytes) for split in SPLITS}
    names = [shard.file for shards in splits.values() for shard in shards]
    if len(set(names)) < len(names):
        raise FieldError("splits: a file occurs twice")
    classes = table.integer("classes", 1, MOST_CLASSES)
    return Manifest(
        name=table.name("name"),
        image_shape=(height, width, channels),
        class_names=parse_names(table, classes),
        resize=parse_resize(table),
        compressed=table.flag("compressed"),
        splits=splits,
        content={split: table.table("content").sha256(split) for split in SPLITS},
        source=_parse_source(table.table("source")),
        targets=parse_targets(table),
        mean=_parse_values(table, "mean", channels, 0),
        deviation=_parse_values(table, "deviation", channels, LEAST_DEVIATION),
        pixels=pixels,
        max_value=max_value,
    )


def _parse_values(table: Table, key: str, channels: int, least: float) -> tuple[float, ...]:
    """A number up to 255 for each channel; empty if the key is missing."""
    values = table.items(key, channels) if key in table else []
    if values and len(values) != channels:
        raise FieldError(f"{key}: expected {channels} numbers, not {len(values)}")
    return tuple(fields.number(value, key, least, 255) for value in values)


def parse_resize(table: Table) -> str:
    """The value ``resize`` of a file; that of files of older versions, which have none, is :data:`CROP`.

    Raises:
        FieldError: it is not one of :data:`RESIZE`.
    """
    resize = table.name("resize") if "resize" in table else CROP
    if resize not in RESIZE:
        raise FieldError(f"resize: expected {' or '.join(RESIZE)}, not {resize[:60]!r}")
    return resize


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
