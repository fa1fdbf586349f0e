"""The samples of a split: compressed sets lie in one buffer per node, others stay in their files."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.inputs import check_memory
from dpcnn.data.layout import Layout, read_images, read_labels, read_layout
from dpcnn.data.rows import FileImages
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, Images, Manifest, read_manifest
from dpcnn.errors import DataError, printable
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.shared import shared_array

Indices = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """Samples by number, wherever they lie.

    Attributes:
        manifest: of the data set.
        pieces: images (n, H, W, C), uint8, in arrays or files that follow each other.
        bounds: (len(pieces) + 1,) the first sample number of each piece, and the end.
        labels: (samples,) integers.

    Raises:
        DataError: images or labels are not so.
    """

    manifest: Manifest
    pieces: tuple[Images | FileImages, ...]
    bounds: Indices
    labels: NDArray[Any]

    def __post_init__(self) -> None:
        for images in self.pieces:
            if images.dtype != np.uint8 or images.ndim != 4:
                scale = "multiply by 255 and convert" if images.dtype.kind == "f" else "convert and reshape them"
                found = f"{images.dtype} {images.shape}"
                raise DataError(f"expected uint8 images 0..255 (n, H, W, C), not {found}; {scale}")
        bounds = np.cumsum([0] + [len(images) for images in self.pieces]).tolist()
        if self.bounds.tolist() != bounds:
            raise DataError(f"expected the bounds {bounds}, by the images of each piece, not {self.bounds.tolist()}")
        if self.labels.dtype.kind not in "iu" or self.labels.shape != (bounds[-1],):
            found = f"{self.labels.dtype} {self.labels.shape}"
            raise DataError(f"expected integer labels ({bounds[-1]},), one for each image, not {found}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.manifest.classes:
            found = f"{self.labels.min()} to {self.labels.max()}"
            raise DataError(f"expected labels from 0 to {self.manifest.classes - 1}, the classes' numbers, not {found}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> tuple[Images, NDArray[Any]]:
        """The images (n, H, W, C) and labels (n,) of these samples, as new arrays.

        Raises:
            DataError: they lie in a file that can't be read any more.
        """
        if len(self.pieces) == 1:
            return self.pieces[0][indices], self.labels[indices]
        images = np.empty((len(indices), *self.pieces[0].shape[1:]), np.uint8)
        which = np.searchsorted(self.bounds, indices, side="right") - 1
        for piece in np.unique(which):
            here = which == piece
            images[here] = self.pieces[piece][indices[here] - self.bounds[piece]]
        return images, self.labels[indices]

    def check_unchanged(self) -> None:
        """Make sure that the files from which images are read have not changed since the start.

        A look at their sizes and times; only those that have changed are verified again.

        Raises:
            DataError: a file's bytes have changed.
        """
        for images in self.pieces:
            if isinstance(images, FileImages) and isinstance(images.file, ShardFile):
                images.file.check_unchanged()


def find_data(name: str) -> Path:
    """The folder of a data set given by its name or its path.

    Raises:
        DataError: there is none.
    """
    beside_package = Path(__file__).resolve().parents[2] / "data" / name
    places = [Path(name), Path("data") / name, beside_package]
    for place in places:
        if os.path.isfile(place / MANIFEST):
            return place
    if os.path.isfile(name):
        out = name.removesuffix(Path(name).suffix) if Path(name).suffix else f"{name}-set"
        command = f"python -m dpcnn.data prepare {shlex.quote(name)} --out {shlex.quote(out)}"
        raise DataError(printable(f"{name}: a file, not a data set; make one of it: {command}"))
    looked = ", ".join(dict.fromkeys(str(place) for place in places))
    raise DataError(
        printable(f"no data set {name!r}: no {MANIFEST} in {looked}; get one: python -m dpcnn.data fetch|prepare")
    )


def load(folder: Path, split: str, comm: SerialComm) -> Samples:
    """Read a split, every shard checked against the manifest, on every rank of ``comm``.

    The ranks of a node divide the checks among them; all checks precede any allocation. Compressed shards are then read
    into one buffer per node. Contiguous shards stay open, and their images are read on demand.

    Raises:
        DataError: on every rank, whichever rank found the fault.
    """
    with comm.fail_together():
        manifest = read_manifest(folder)
    first = comm.broadcast_obj(manifest.digest)
    with comm.fail_together():
        if manifest.digest != first:
            raise DataError(
                f"{folder}: rank {comm.rank} sees another data set than rank 0; give all nodes the same files"
            )
    return (_in_memory if manifest.compressed else _in_files)(folder, manifest, split, comm)


def _in_memory(folder: Path, manifest: Manifest, split: str, comm: SerialComm) -> Samples:
    """The split's compressed shards, read into memory that the ranks of a node share."""
    node, shards, bounds = comm.node(), manifest.splits[split], manifest.bounds(split)
    mine = range(node.rank, len(shards), node.size)
    with comm.fail_together():
        files = {number: ShardFile(folder, shards[number]) for number in mine}
        layouts = _check(files, manifest, split)
    size = sum(node.allgather_obj(sum(file.size for file in files.values())))
    samples = int(bounds[-1])
    with comm.fail_together():
        advice = "prepare the data set again, with --contiguous"
        check_memory(f"{folder} ({split})", samples * (manifest.image_bytes + 1), size, advice)
    images = shared_array(node, (samples, *manifest.image_shape), np.uint8)
    labels = shared_array(node, (samples,), np.uint8)
    with comm.fail_together():
        for number, layout in layouts.items():
            place = slice(bounds[number], bounds[number + 1])
            read_images(files[number], layout, images[place])
            read_labels(files[number], layout, labels[place])
            check_labels(files[number].path, labels[place], manifest.classes)
    return Samples(manifest, (images,), bounds[[0, -1]], labels)


def _in_files(folder: Path, manifest: Manifest, split: str, comm: SerialComm) -> Samples:
    """The split's contiguous shards, which every rank keeps open; the labels in memory."""
    node, shards, bounds = comm.node(), manifest.splits[split], manifest.bounds(split)
    with comm.fail_together():
        files = [ShardFile(folder, shard) for shard in shards]
        mine = {number: files[number] for number in range(node.rank, len(shards), node.size)}
        layouts = _check(mine, manifest, split)
    places = {number: (layout.images, layout.labels) for number, layout in layouts.items()}
    told = sorted(each for part in node.allgather_obj(list(places.items())) for each in part)
    labels = np.empty(int(bounds[-1]), np.uint8)
    pieces = []
    with comm.fail_together():
        for number, (of_images, of_labels) in told:
            here = labels[bounds[number] : bounds[number + 1]]
            files[number].read(here.data, of_labels)
            check_labels(files[number].path, here, manifest.classes)
            pieces.append(FileImages(files[number], of_images, (len(here), *manifest.image_shape)))
    return Samples(manifest, tuple(pieces), bounds, labels)


def _check(files: dict[int, ShardFile], manifest: Manifest, split: str) -> dict[int, Layout]:
    """Verify shards, and find where their samples lie."""
    layouts = {}
    for number, file in files.items():
        file.verify()
        layouts[number] = read_layout(file, manifest.splits[split][number], manifest)
    return layouts


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
