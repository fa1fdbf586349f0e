"""Shards as HDF5 files: written, and read again without trusting them.

The HDF5 library only finds where the samples of a shard lie. Their bytes are unpacked here, so that no damaged or
hostile file makes the library reserve memory for them.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpcnn.base.arrays import Shape
from dpcnn.data.inputs import reason
from dpcnn.data.rows import FileImages
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, Images, Manifest, Shard
from dpcnn.errors import DataError
from dpcnn.parallel.tree import chunks

CHUNK_BYTES = 1 << 20
"""Bytes of a chunk, unless a single image is larger."""

BYTES = (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE)  # the same type for HDF5's users, but not for HDF5
AGAIN = "prepare the data set again"


@dataclass(frozen=True)
class Layout:
    """Where a shard's samples lie in its file.

    Attributes:
        rows: images of a chunk; of the shard, if it is not compressed.
        images: the offset of the images' first byte; 0 if they are compressed.
        labels: the offset of the labels' first byte.
    """

    rows: int
    images: int
    labels: int


def write_shard(path: Path, blocks: Iterable[tuple[Images, Images]], shape: Shape, compressed: bool) -> None:
    """Write one shard: its bytes depend on nothing but the samples and the HDF5 library.

    Args:
        blocks: images and labels, some at a time; all but the last have a multiple of :func:`most_rows`.
        shape: (samples, H, W, C) of all images.
    """
    filters: dict[str, Any] = {}
    if compressed:
        rows = min(shape[0], most_rows(math.prod(shape[1:])))
        filters = {"chunks": (rows, *shape[1:]), "compression": "gzip", "compression_opts": 9}
    with h5py.File(path, "w", libver="earliest", locking=False) as file:
        labels = _write_images(file.create_dataset("images", shape, np.uint8, track_times=False, **filters), blocks)
        file.create_dataset("labels", data=labels, track_times=False)


def _write_images(dataset: h5py.Dataset, blocks: Iterable[tuple[Images, Images]]) -> Images:
    """Write the images of ``blocks`` and return the labels. The dataset is closed afterwards: it is in no variable."""
    labels, start = np.empty(len(dataset), np.uint8), 0
    for images, of_images in blocks:
        stop = start + len(images)
        dataset[start:stop], labels[start:stop] = images, of_images
        start = stop
    return labels


def most_rows(image_bytes: int) -> int:
    """The most images of a chunk."""
    return max(1, CHUNK_BYTES // image_bytes)


def read_layout(file: ShardFile, shard: Shard, manifest: Manifest) -> Layout:
    """Where the samples of a verified shard lie, every one of them within the file.

    Raises:
        DataError: it is not HDF5, is damaged, or does not match the manifest.
    """
    with _opened(file) as opened:
        images = _dataset(file, opened, "images", (shard.samples, *manifest.image_shape))
        labels = _dataset(file, opened, "labels", (shard.samples,))
        if not manifest.compressed:
            return Layout(shard.samples, _place(file, images), _place(file, labels))
        rows = _rows(file, images, shard.samples)
        for start in range(0, shard.samples, rows):
            _packed(images, start)
        return Layout(rows, 0, _place(file, labels))


@contextmanager
def _opened(file: ShardFile) -> Iterator[h5py.File]:
    """The shard as HDF5; one line for the many kinds of errors that h5py raises for damaged files."""
    try:
        with h5py.File(file.name, "r", locking=False) as opened:  # locks fail on many network file systems
            if opened.userblock_size:
                raise DataError(f"{file.path}: doesn't begin as a shard does; {AGAIN}")
            yield opened
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file.path}: not an HDF5 file, or a damaged one ({reason(error)}); {AGAIN}") from None


def _dataset(file: ShardFile, opened: h5py.File, name: str, shape: tuple[int, ...]) -> h5py.Dataset:
    """A dataset of this name, of bytes of this shape."""
    if not isinstance(opened.get(name, getlink=True), h5py.HardLink) or not isinstance(opened[name], h5py.Dataset):
        raise DataError(f"{file.path}: holds no dataset {name!r} of its own; {AGAIN}")
    dataset = opened[name]
    if dataset.shape != shape or dataset.id.get_type() not in BYTES:
        found = f"{dataset.dtype} {dataset.shape}"
        raise DataError(f"{file.path}: {name} are {found}, but {MANIFEST} says uint8 {shape}; {AGAIN}")
    return dataset


def _place(file: ShardFile, dataset: h5py.Dataset) -> int:
    """The offset of the first byte of a dataset that is neither compressed nor stored in chunks."""
    told, place = dataset.id.get_create_plist(), dataset.id.get_offset()
    if told.get_layout() != h5py.h5d.CONTIGUOUS or told.get_external_count() or told.get_nfilters():
        raise DataError(f"{file.path}: holds samples that are not stored in one run; {AGAIN}")
    if place is None or not 0 <= place <= file.size - dataset.size:
        raise DataError(f"{file.path}: holds only a part of its samples; {AGAIN}")
    return int(place)


def _rows(file: ShardFile, dataset: h5py.Dataset, samples: int) -> int:
    """The images of a chunk of a compressed dataset."""
    told = dataset.id.get_create_plist()
    filters = [told.get_filter(number)[0] for number in range(told.get_nfilters())]
    if told.get_layout() != h5py.h5d.CHUNKED or filters != [h5py.h5z.FILTER_DEFLATE]:
        raise DataError(f"{file.path}: images are not compressed by gzip alone, but {MANIFEST} says so; {AGAIN}")
    rows = int(dataset.chunks[0])
    if dataset.chunks[1:] != dataset.shape[1:] or not 1 <= rows <= most_rows(dataset.size // samples):
        raise DataError(f"{file.path}: its chunks of {dataset.chunks} are not as prepare makes them; {AGAIN}")
    return rows


def _packed(dataset: h5py.Dataset, start: int) -> bytes:
    """The bytes of the chunk whose first image has this number, as they are stored; an error if it was never written.

    It is looked up by its number: a file can be made so that a walk through the index of its chunks takes forever.
    """
    skipped, packed = dataset.id.read_direct_chunk((start, 0, 0, 0))
    if skipped or len(packed) > 2 * math.prod(dataset.chunks) + 1024:
        raise ValueError(f"the chunk of image {start} is not compressed as prepare does it")
    return bytes(packed)


def read_images(file: ShardFile, layout: Layout, out: Images) -> None:
    """Fill an array (samples, H, W, C) from a compressed shard.

    Raises:
        DataError: a chunk can't be unpacked.
    """
    for start, images in _chunks(file, layout, out.shape):
        out[start : start + layout.rows] = images


def image_blocks(file: ShardFile, layout: Layout, shape: Shape, compressed: bool) -> Iterator[Images]:
    """The images (samples, H, W, C) of a shard, some at a time.

    Raises:
        DataError: they can't be read.
    """
    if compressed:
        for _, images in _chunks(file, layout, shape):
            yield images
        return
    stored = FileImages(file, layout.images, shape)
    for start, stop in chunks(shape[0], most_rows(math.prod(shape[1:]))):
        yield stored[np.arange(start, stop)]


def _chunks(file: ShardFile, layout: Layout, shape: Shape) -> Iterator[tuple[int, Images]]:
    """The chunks of a compressed shard, each with the index of its first image."""
    size = layout.rows * math.prod(shape[1:])
    with _opened(file) as opened:
        for start, stop in chunks(shape[0], layout.rows):
            flat = np.frombuffer(_unpacked(_packed(opened["images"], start), size), np.uint8)
            yield start, flat.reshape(-1, *shape[1:])[: stop - start]


def _unpacked(packed: bytes, size: int) -> bytes:
    """A chunk of this size in bytes; an error if it has another."""
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(packed, size)
    rest = unpacking.decompress(unpacking.unconsumed_tail, 1)  # behind the last byte follows a checksum
    if len(found) < size or rest or not unpacking.eof:
        raise ValueError("a chunk has another size")
    return found


def read_labels(file: ShardFile, layout: Layout, out: Images) -> None:
    """Fill an array (samples,) with a shard's labels."""
    file.read(out.data, layout.labels)
