"""Shards as HDF5 files, which are not trusted when they are read.

The HDF5 library only locates the samples of a shard. This module unpacks their bytes, so a damaged or hostile file
can't make the library allocate memory for them.
"""

import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.inputs import reason
from dpcnn.data.rows import FileImages
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import MANIFEST, Images, Manifest
from dpcnn.errors import DataError
from dpcnn.parallel.tree import chunks

CHUNK_BYTES = 1 << 20
"""The most bytes of a chunk, unless a single image is larger."""

SPARE_BYTES = 4 * CHUNK_BYTES
"""More than HDF5 keeps in memory of a file that it writes: a cache of chunks of 1 MiB, and descriptions of datasets."""

BYTES = (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE)
"""The HDF5 types for uint8: their values are the same, but HDF5 does not compare them as equal."""

TYPES: dict[np.dtype[Any], tuple[h5py.h5t.TypeID, ...]] = {
    np.dtype("u1"): BYTES,
    np.dtype("<u2"): (h5py.h5t.STD_U16LE,),
    np.dtype("<f2"): (h5py.h5t.IEEE_F16LE,),
    np.dtype("<f4"): (h5py.h5t.IEEE_F32LE,),
}
"""The types of HDF5 for those of samples."""

AGAIN = "prepare the data set again"


class Layout(NamedTuple):
    """The location of a shard's samples in its file.

    Attributes:
        rows: images per chunk; per shard, if it is not compressed.
        images: the offset of the images' first byte; 0 if they are compressed.
        labels: the offset of the labels' first byte.
    """

    rows: int
    images: int
    labels: int


def write_shard(path: Path, blocks: Iterable[tuple[Images, Array]], shape: Shape, dtype: Any, compressed: bool) -> None:
    """Write one shard. Its bytes depend only on the samples and the HDF5 library.

    Args:
        blocks: images and labels, some at a time; all but the last have a multiple of :func:`most_rows`.
        shape: (samples, H, W, C) of all images.
        dtype: of the images.
    """
    filters: dict[str, Any] = {}
    if compressed:
        rows = min(shape[0], most_rows(math.prod(shape[1:]) * np.dtype(dtype).itemsize))
        filters = {"chunks": (rows, *shape[1:]), "compression": "gzip", "compression_opts": 9}
    with _spare_room(path.parent) as release, h5py.File(path, "w", libver="earliest", locking=False) as file:
        try:
            labels = _write_images(file.create_dataset("images", shape, dtype, track_times=False, **filters), blocks)
            file.create_dataset("labels", data=labels, track_times=False)
            _flush(file)
        except BaseException:
            release()
            raise


@contextmanager
def _spare_room(folder: Path) -> Iterator[Callable[[], None]]:
    """Hold some room of a disk, and give a function that releases it.

    HDF5 keeps what it could not write, and crashes the process if it can't write it when it closes the file either.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, SPARE_BYTES)
        yield file.close


def _write_images(dataset: h5py.Dataset, blocks: Iterable[tuple[Images, Array]]) -> Array:
    """Write the images of ``blocks`` and return the labels. The dataset is closed afterwards: it is in no variable."""
    labels, start = [], 0
    for images, of_images in blocks:
        dataset[start : start + len(images)] = images
        labels.append(of_images)
        start += len(images)
    _flush(dataset)
    return np.concatenate(labels)


def _flush(opened: h5py.File | h5py.Dataset) -> None:
    """Let HDF5 write what it keeps in memory, while it can still report an error: it can't when it closes.

    Raises:
        OSError: the disk is full, for example.
    """
    try:
        opened.flush()
    except RuntimeError as error:
        raise OSError(str(error)) from None


def most_rows(image_bytes: int) -> int:
    """The most images per chunk."""
    return max(1, CHUNK_BYTES // image_bytes)


def read_layout(file: ShardFile, manifest: Manifest) -> Layout:
    """Locate the samples of a verified shard, and make sure that all are within the file.

    Raises:
        DataError: it is not HDF5, is damaged, or does not match the manifest.
    """
    samples = file.shard.samples
    with _opened(file) as opened:
        images = _dataset(file, opened, "images", manifest.images_type, (samples, *manifest.image_shape))
        labels = _dataset(file, opened, "labels", manifest.labels_type, manifest.labels_shape(samples))
        if not manifest.compressed:
            return Layout(samples, _offset(file, images), _offset(file, labels))
        rows = _rows(file, images, samples)
        for start in range(0, samples, rows):
            _packed(images, start)
        return Layout(rows, 0, _offset(file, labels))


@contextmanager
def _opened(file: ShardFile) -> Iterator[h5py.File]:
    """Open the shard as HDF5. Any error of h5py for a damaged file becomes a DataError."""
    try:
        with h5py.File(file.name, "r", locking=False) as opened:  # locks fail on many network file systems
            if opened.userblock_size:
                raise DataError(f"{file.path}: does not begin like a shard; {AGAIN}")
            yield opened
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file.path}: not an HDF5 file, or a damaged one ({reason(error)}); {AGAIN}") from None


def _dataset(
    file: ShardFile, opened: h5py.File, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> h5py.Dataset:
    """The dataset with this name, which must have this type, one of :data:`TYPES`, and this shape."""
    if not isinstance(opened.get(name, getlink=True), h5py.HardLink) or not isinstance(opened[name], h5py.Dataset):
        raise DataError(f"{file.path}: holds no dataset {name!r} of its own; {AGAIN}")
    dataset = opened[name]
    if dataset.shape != shape or dataset.id.get_type() not in TYPES[dtype]:
        actual = f"{dataset.dtype} {dataset.shape}"
        raise DataError(f"{file.path}: {name} are {actual}, but {MANIFEST} says {dtype} {shape}; {AGAIN}")
    return dataset


def _offset(file: ShardFile, dataset: h5py.Dataset) -> int:
    """The offset of the first byte of a dataset that is neither compressed nor stored in chunks."""
    properties, offset = dataset.id.get_create_plist(), dataset.id.get_offset()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count() or properties.get_nfilters():
        raise DataError(f"{file.path}: holds samples that are not contiguous; {AGAIN}")
    if offset is None or not 0 <= offset <= file.size - dataset.nbytes:
        raise DataError(f"{file.path}: holds only a part of its samples; {AGAIN}")
    return int(offset)


def _rows(file: ShardFile, dataset: h5py.Dataset, samples: int) -> int:
    """The images per chunk of a compressed dataset."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]
    if properties.get_layout() != h5py.h5d.CHUNKED or filters != [h5py.h5z.FILTER_DEFLATE]:
        raise DataError(f"{file.path}: images are not compressed by gzip alone, but {MANIFEST} says so; {AGAIN}")
    rows = int(dataset.chunks[0])
    if dataset.chunks[1:] != dataset.shape[1:] or not 1 <= rows <= most_rows(dataset.nbytes // samples):
        raise DataError(f"{file.path}: its chunks of {dataset.chunks} differ from those of prepare; {AGAIN}")
    return rows


def _packed(dataset: h5py.Dataset, start: int) -> bytes:
    """The stored bytes of the chunk with the first image ``start``; an error if it was never written.

    The chunk is looked up directly: in a hostile file, a walk through the index of the chunks may never end.
    """
    skipped, packed = dataset.id.read_direct_chunk((start, 0, 0, 0))
    if skipped or len(packed) > 2 * math.prod(dataset.chunks) * dataset.dtype.itemsize + 1024:
        raise ValueError(f"the chunk of image {start} is not compressed like those of prepare")
    return bytes(packed)


def read_images(file: ShardFile, layout: Layout, out: Images) -> None:
    """Fill an array (samples, H, W, C) from a compressed shard.

    Raises:
        DataError: a chunk can't be unpacked.
    """
    for start, images in _chunks(file, layout, out.shape, out.dtype):
        out[start : start + layout.rows] = images


def image_blocks(file: ShardFile, layout: Layout, manifest: Manifest) -> Iterator[Images]:
    """The images (n, H, W, C) of a shard, some at a time.

    Raises:
        DataError: they can't be read.
    """
    samples, dtype = file.shard.samples, manifest.images_type
    shape = samples, *manifest.image_shape
    if manifest.compressed:
        for _, images in _chunks(file, layout, shape, dtype):
            yield images
        return
    stored = FileImages(file, layout.images, shape, dtype)
    for start, stop in chunks(samples, most_rows(manifest.image_bytes)):
        yield stored[np.arange(start, stop)]


def _chunks(file: ShardFile, layout: Layout, shape: Shape, dtype: Any) -> Iterator[tuple[int, Images]]:
    """The chunks of a compressed shard, each with the index of its first image."""
    size = layout.rows * math.prod(shape[1:]) * dtype.itemsize
    with _opened(file) as opened:
        for start, stop in chunks(shape[0], layout.rows):
            flat = np.frombuffer(unpacked(_packed(opened["images"], start), size), dtype)
            yield start, flat.reshape(-1, *shape[1:])[: stop - start]


def unpacked(packed: bytes, size: int) -> bytes:
    """Unpack a chunk of ``size`` bytes; an error if its size differs."""
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(packed, size)
    rest = unpacking.decompress(unpacking.unconsumed_tail, 1)  # a checksum follows the last byte
    if len(content) < size or rest or not unpacking.eof:
        raise ValueError("a chunk has another size")
    return content


def read_labels(file: ShardFile, offset: int, out: Array) -> None:
    """Fill an array, as :meth:`Manifest.labels_shape` describes it, with a shard's labels; they begin at ``offset``."""
    file.read(out.reshape(-1).view(np.uint8).data, offset)


def labels_of(file: ShardFile, layout: Layout, manifest: Manifest) -> Array:
    """A shard's labels as a new array."""
    labels = np.empty(manifest.labels_shape(file.shard.samples), manifest.labels_type)
    read_labels(file, layout.labels, labels)
    return labels
