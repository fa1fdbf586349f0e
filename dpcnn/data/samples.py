"""A split in memory: small sets in one buffer a node, large ones mapped from their files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.shards import MANIFEST, Images, Manifest, map_images, open_shard, read_manifest, verify
from dpcnn.errors import DataError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.shared import shared_array

Numbers = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """Samples by number, wherever they lie.

    Attributes:
        manifest: of the data set.
        pieces: arrays of images (n, H, W, C) that follow each other.
        bounds: (len(pieces) + 1,) the first sample number of each piece, and the end.
        labels: (samples,) uint8.
    """

    manifest: Manifest
    pieces: tuple[Images, ...]
    bounds: Numbers
    labels: Images

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, numbers: Numbers) -> tuple[Images, Images]:
        """The images (n, H, W, C) and labels (n,) of these sample numbers, as new arrays."""
        if len(self.pieces) == 1:
            return self.pieces[0][numbers], self.labels[numbers]
        images = np.empty((len(numbers), *self.pieces[0].shape[1:]), np.uint8)
        which = np.searchsorted(self.bounds, numbers, side="right") - 1
        for piece in np.unique(which):
            here = which == piece
            images[here] = self.pieces[piece][numbers[here] - self.bounds[piece]]
        return images, self.labels[numbers]

    def check_unchanged(self) -> None:
        """STUB"""


def find_data(name: str) -> Path:
    """The folder of a data set given by its name or its path.

    Raises:
        DataError: there is none.
    """
    beside_package = Path(__file__).resolve().parents[2] / "data" / name
    places = [Path(name), Path("data") / name, beside_package]
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise DataError(f"no data set {name!r}: no {MANIFEST} in {looked}; get one: python -m dpcnn.data fetch|prepare")


def load(folder: Path, split: str, comm: Alone) -> Samples:
    """Read a split, every shard checked against the manifest, on every rank of ``comm``.

    Compressed shards are read into one buffer a node, the node's ranks each reading some of them.
    Contiguous ones are mapped, after all ranks together have checked them.

    Raises:
        DataError: on every rank, whichever rank found the fault.
    """
    with comm.together():
        manifest = read_manifest(folder)
    if comm.broadcast_obj(manifest.checksum) != manifest.checksum:
        raise DataError(f"{folder}: rank {comm.rank} sees another data set than rank 0; give all nodes the same files")
    shards = manifest.splits[split]
    bounds = np.cumsum([0] + [shard.samples for shard in shards])
    if not manifest.compressed:
        return _map(folder, manifest, split, bounds, comm)
    node = comm.node()
    images = shared_array(node, (int(bounds[-1]), *manifest.image_shape), np.uint8)
    labels = shared_array(node, (int(bounds[-1]),), np.uint8)
    with comm.together():
        for number in range(node.rank, len(shards), node.size):
            place = slice(bounds[number], bounds[number + 1])
            _read(folder, manifest, split, number, images[place], labels[place])
    return Samples(manifest, (images,), bounds[[0, -1]], labels)


def _read(folder: Path, manifest: Manifest, split: str, number: int, images: Images, labels: Images) -> None:
    """Fill the arrays from one compressed shard."""
    shard = manifest.splits[split][number]
    verify(folder, shard)
    file, stored_images, stored_labels = open_shard(folder, shard, manifest)
    with file:
        try:
            stored_images.read_direct(images)
            stored_labels.read_direct(labels)
        except OSError as error:
            raise DataError(f"{folder / shard.file}: can't be decompressed ({error}); prepare again") from None
    check_labels(folder / shard.file, labels, manifest.classes)


def _map(folder: Path, manifest: Manifest, split: str, bounds: Numbers, comm: Alone) -> Samples:
    """The split's contiguous shards, mapped; the labels in memory."""
    shards = manifest.splits[split]
    labels = np.empty(int(bounds[-1]), np.uint8)
    pieces: list[Images] = []
    with comm.together():
        for shard in shards[comm.rank :: comm.size]:
            verify(folder, shard)
    with comm.together():
        for number, shard in enumerate(shards):
            file, stored_images, stored_labels = open_shard(folder, shard, manifest)
            with file:
                mapped = map_images(folder / shard.file, stored_images)
                if mapped is None:
                    raise DataError(f"{folder / shard.file}: compressed, but {MANIFEST} says not; prepare again")
                pieces.append(mapped)
                stored_labels.read_direct(labels[bounds[number] : bounds[number + 1]])
        check_labels(folder, labels, manifest.classes)
    return Samples(manifest, tuple(pieces), bounds, labels)


def check_labels(path: Path, labels: Images, classes: int) -> None:
    """Refuse labels that name no class.

    Raises:
        DataError: with the first such label.
    """
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError(
            f"{path}: sample {wrong[0]} has label {labels[wrong[0]]}, but there are {classes} classes; "
            "prepare the data set again"
        )
