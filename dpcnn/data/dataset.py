"""The samples of a split: compressed sets lie in one buffer per node, others stay in their files."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Shape
from dpcnn.base.machine import memory_left
from dpcnn.data.inputs import check_memory
from dpcnn.data.kinds import first_picture
from dpcnn.data.layout import Layout, read_images, read_labels, read_layout
from dpcnn.data.pixels import scaled
from dpcnn.data.rows import FileImages
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, Images, Manifest, read_manifest
from dpcnn.data.verified import Verification
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.shared import shared_array

Indices = NDArray[Any]

ARRAYS = "arrays"
"""In place of a data set's name, for samples that are arrays of a user's program."""


@dataclass(frozen=True)
class Samples:
    """Samples by index, in memory or in files.

    Attributes:
        manifest: of the data set.
        pieces: consecutive arrays or files of images (n, H, W, C), of the manifest's type.
        bounds: (len(pieces) + 1,) the index of the first sample of each piece, and the end.
        labels: the targets: (samples,) integers, or (samples, K), see :data:`dpcnn.nn.losses.TARGETS`.
        class_labels: of arrays from Python, the user's label of each class.
        max_value: the value of white; None: it depends on the type.

    Raises:
        DataError: images or labels have another type or shape.
    """

    manifest: Manifest
    pieces: tuple[Images | FileImages, ...]
    bounds: Indices
    labels: NDArray[Any]
    class_labels: tuple[int | str, ...] = ()
    max_value: float | None = None

    def __post_init__(self) -> None:
        for images in self.pieces:
            if images.dtype != self.manifest.images_type or images.ndim != 4:
                actual = f"{images.dtype} {images.shape}"
                raise DataError(
                    f"expected {self.manifest.pixels} images (n, H, W, C), not {actual}; convert and reshape them"
                )
        bounds = np.cumsum([0] + [len(images) for images in self.pieces]).tolist()
        if self.bounds.tolist() != bounds:
            raise DataError(f"expected the bounds {bounds} from the images of each piece, not {self.bounds.tolist()}")
        self._check_labels(self.manifest.labels_shape(bounds[-1]))

    def _check_labels(self, shape: Shape) -> None:
        values = self.manifest.targets == VALUES
        if self.labels.dtype.kind not in ("f" if values else "iu") or self.labels.shape != shape:
            actual = f"{self.labels.dtype} {self.labels.shape}"
            what = "float" if values else "integer"
            raise DataError(f"expected {what} labels {shape}, one for each image, not {actual}")
        most = 1 if self.manifest.targets == MULTILABEL else self.manifest.classes - 1
        if not values and self.labels.size and not 0 <= self.labels.min() <= self.labels.max() <= most:
            actual = f"{self.labels.min()} to {self.labels.max()}"
            raise DataError(f"expected labels from 0 to {most}, one per class, not {actual}")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> tuple[Images, NDArray[Any]]:
        """The images (n, H, W, C) and labels (n,) or (n, K) of these samples, as new arrays.

        Images are uint8, or float32 in which white is 255 if they are stored with another type.

        Raises:
            DataError: a file can no longer be read.
        """
        if len(self.pieces) == 1:
            return scaled(self.pieces[0][indices], self.manifest.max_value), self.labels[indices]
        images = np.empty((len(indices), *self.pieces[0].shape[1:]), self.pieces[0].dtype)
        for piece, rows in self._by_piece(indices):
            images[rows] = self.pieces[piece][indices[rows] - self.bounds[piece]]
        return scaled(images, self.manifest.max_value), self.labels[indices]

    def read_ahead(self, indices: Indices) -> None:
        """Let the system begin to read the images of these samples, if they are in files, and return at once."""
        if not isinstance(self.pieces[0], FileImages):
            return
        for piece, rows in self._by_piece(indices):
            images = self.pieces[piece]
            if isinstance(images, FileImages):
                images.read_ahead(indices[rows] - self.bounds[piece])

    def _by_piece(self, indices: Indices) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Each piece that contains some of these samples, and which of them it contains."""
        piece_of = np.searchsorted(self.bounds, indices, side="right") - 1
        for piece in np.flatnonzero(np.bincount(piece_of)).tolist():
            yield piece, piece_of == piece

    def check_unchanged(self) -> None:
        """Make sure that the files from which images are read have not changed since the start.

        Only files whose size or time has changed are verified again.

        Raises:
            DataError: a file's bytes have changed.
        """
        for images in self.pieces:
            if isinstance(images, FileImages) and isinstance(images.file, ShardFile):
                images.file.check_unchanged()


def find_data(name: str) -> Path:
    """The folder of the data set with this name or path.

    Raises:
        DataError: there is none.
    """
    folders = _places(name)
    for folder in folders:
        if os.path.isfile(folder / MANIFEST):
            return folder
    for folder in folders:
        if advice := _advice(folder):
            raise DataError(printable(f"{folder}: {advice}"))
    looked = ", ".join(map(str, folders))
    raise DataError(printable(f"no data set {name!r}: no {MANIFEST} in {looked}; get one: dpcnn data fetch|prepare"))


def _advice(source: Path) -> str:
    """How to make a data set from a file, or from a folder with folders of pictures; empty for anything else."""
    of_file = os.path.isfile(source)
    out = source.with_suffix("") if of_file and source.suffix else Path(f"{source}-set")
    command = f"dpcnn data prepare {shlex.quote(str(source))} --out {shlex.quote(str(out))}"
    if of_file:
        return f"a file, not a data set; make one from it: {command}"
    picture = first_picture(source)
    if picture is None or len(picture.parts) == 1:
        return ""
    return f"pictures, not a data set; make one from them: {command} --size 64x64; then give --data {out}"


def find_data_of(run: Path | str, name: str) -> Path:
    """The folder of the data set with which a run was trained.

    Args:
        run: the run's folder or a checkpoint, for messages.
        name: the name or path in the run's configuration; a path may be relative to a folder that is not the current
            one.

    Raises:
        DataError: there is none.
    """
    try:
        return find_data(name)
    except DataError:
        if name == ARRAYS:
            raise DataError(
                f"{run}: trained on arrays from Python, or on a data set {name!r} that is not here; give a data set "
                "with such images and labels: --data DIR"
            ) from None
        looked = ", ".join(str(folder / MANIFEST) for folder in _places(name))
        raise DataError(
            printable(f"{run}: its data set {name!r} is not here: there is no {looked}; give its folder: --data DIR")
        ) from None


def _places(name: str) -> list[Path]:
    """The folders in which the data set with this name or path may be."""
    beside_package = Path(__file__).resolve().parents[2] / "data" / name
    return list(dict.fromkeys([Path(name), Path("data") / name, beside_package]))


def load(folder: Path, split: str, comm: SerialComm, verify: bool = False) -> Samples:
    """Read a split on every rank of ``comm``, and check every shard against the manifest.

    A shard that has not changed since it was verified is not verified again, see :mod:`dpcnn.data.verified`. The ranks
    of a node divide the checks among them; all checks precede any allocation. Compressed shards are then read into one
    buffer per node. Contiguous shards stay open, and their images are read on demand.

    Args:
        verify: whether to verify every shard.

    Raises:
        DataError: on every rank, if any rank finds a fault.
    """
    with comm.fail_together():
        manifest = read_manifest(folder)
    first = comm.broadcast_obj(manifest.digest)
    with comm.fail_together():
        if manifest.digest != first:
            raise DataError(
                f"{folder}: rank {comm.rank} sees another data set than rank 0; give all nodes the same files"
            )
    verification = Verification(comm.node(), folder, manifest, verify)
    samples = (_in_memory if manifest.compressed else _in_files)(folder, manifest, split, comm, verification)
    verification.save()
    return samples


def _in_memory(folder: Path, manifest: Manifest, split: str, comm: SerialComm, verification: Verification) -> Samples:
    """Read the split's compressed shards into memory that the ranks of a node share."""
    node, shards, bounds = comm.node(), manifest.splits[split], manifest.bounds(split)
    own = range(node.rank, len(shards), node.size)
    with comm.fail_together():
        files = {number: ShardFile(folder, shards[number]) for number in own}
        layouts = _check(files, manifest, verification)
    size = sum(node.allgather_obj(sum(file.size for file in files.values())))
    samples = int(bounds[-1])
    with comm.fail_together():
        needed, name = samples * manifest.sample_bytes, f"{folder} ({split})"
        check_memory(name, needed, size, "prepare the data set again, with --contiguous")
        if node.rank == 0 and needed > (left := memory_left()):
            raise DataError(
                f"{name}: needs {needed / 1e6:,.0f} MB of memory, but {left / 1e6:,.0f} MB are left here; train with "
                "--stage DIR, which makes a copy that stays on disk, or prepare the data set again, with --contiguous"
            )
    with comm.fail_together():
        images = shared_array(node, (samples, *manifest.image_shape), manifest.images_type)
        labels = shared_array(node, manifest.labels_shape(samples), manifest.labels_type)
    with comm.fail_together():
        for number, layout in layouts.items():
            span = slice(bounds[number], bounds[number + 1])
            read_images(files[number], layout, images[span])
            read_labels(files[number], layout.labels, labels[span])
            check_labels(files[number].path, labels[span], manifest)
    return Samples(manifest, (images,), bounds[[0, -1]], labels, max_value=manifest.max_value)


def _in_files(folder: Path, manifest: Manifest, split: str, comm: SerialComm, verification: Verification) -> Samples:
    """Open the split's contiguous shards on every rank, and read the labels into memory."""
    node, shards, bounds = comm.node(), manifest.splits[split], manifest.bounds(split)
    with comm.fail_together():
        files = [ShardFile(folder, shard) for shard in shards]
        own = {number: files[number] for number in range(node.rank, len(shards), node.size)}
        layouts = _check(own, manifest, verification)
    own_offsets = {number: (layout.images, layout.labels) for number, layout in layouts.items()}
    offsets = sorted(each for part in node.allgather_obj(list(own_offsets.items())) for each in part)
    labels = np.empty(manifest.labels_shape(int(bounds[-1])), manifest.labels_type)
    pieces = []
    for file in files:
        file.expect_random()
    with comm.fail_together():
        for number, (image_offset, label_offset) in offsets:
            shard_labels = labels[bounds[number] : bounds[number + 1]]
            read_labels(files[number], label_offset, shard_labels)
            check_labels(files[number].path, shard_labels, manifest)
            shape = (len(shard_labels), *manifest.image_shape)
            pieces.append(FileImages(files[number], image_offset, shape, manifest.images_type))
    return Samples(manifest, tuple(pieces), bounds, labels, max_value=manifest.max_value)


def _check(files: dict[int, ShardFile], manifest: Manifest, verification: Verification) -> dict[int, Layout]:
    """Verify shards, and locate their samples."""
    layouts = {}
    for number, file in files.items():
        verification.check(file)
        layouts[number] = read_layout(file, manifest)
    return layouts


def check_labels(path: Path, labels: NDArray[Any], manifest: Manifest) -> None:
    """Refuse labels beyond the number of classes, or other than 0 and 1, or values that are not finite.

    Raises:
        DataError: there is one; the message names the first.
    """
    expected, beyond = {
        CLASSES: (f"there are {manifest.classes} classes", labels >= manifest.classes),
        MULTILABEL: ("labels are 0 or 1", labels > 1),
        VALUES: ("values must be finite", ~np.isfinite(labels)),
    }[manifest.targets]
    wrong = np.argwhere(beyond)
    if len(wrong):
        place = tuple(wrong[0])
        raise DataError(
            f"{path}: sample {place[0]} has label {labels[place]}, but {expected}; prepare the data set again"
        )
