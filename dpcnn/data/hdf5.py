"""Arrays in HDF5 files of others, which are not trusted.

The HDF5 library only locates the samples. This package reads and unpacks their bytes, some samples at a time, so a
damaged or hostile file can't make the library allocate memory for them.
"""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.inputs import Input, Reader, check_memory, refusing
from dpcnn.data.layout import BYTES, unpacked
from dpcnn.data.rows import FileImages
from dpcnn.errors import DataError, printable

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of most HDF5 files."""

MOST_CHUNK = 64 << 20
"""The most bytes of a chunk: it is in memory as a whole."""

MOST_LENGTH = 1 << 40
MOST_ITEM = 256
"""Bytes of an element."""

GZIP, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
AGAIN = "get the file again"
REPACK = "write the array again with h5py, with compression='gzip' or none"


class ChunkedImages:
    """Images in the chunks of an HDF5 file, which are unpacked on demand.

    Attributes:
        shape: (n, H, W, C); of labels (n,) or (n, K).
        dtype: of the values.

    Args:
        path: of the file, for messages.
        dataset: in chunks, of :func:`_check_dataset`. It stays open as long as there is this object.
        filters: of the chunks, see :func:`_filters`.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset, filters: Sequence[int]) -> None:
        self._path, self._dataset, self._filters = path, dataset, filters
        self.dtype, self.shape = dataset.dtype, _image_shape(dataset.shape)
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Array) -> Array:
        """The images (len(indices), H, W, C) of these indices, as a new array; each chunk is unpacked once.

        Raises:
            DataError: a chunk is missing or damaged.
        """
        (rows, *steps), (_, *sides) = self._dataset.chunks, self._dataset.shape
        found = np.empty((len(indices), *sides), self.dtype)
        for first in np.unique(indices // rows * rows).tolist():
            mine = indices // rows * rows == first
            for corner in product(*(range(0, side, step) for side, step in zip(sides, steps, strict=True))):
                chunk = self._chunk((first, *corner))
                place = tuple(slice(at, at + step) for at, step in zip(corner, steps, strict=True))
                inside = tuple(slice(0, side - at) for at, side in zip(corner, sides, strict=True))
                found[mine, *place] = chunk[(indices[mine] - first, *inside)]
        return found.reshape(-1, *self.shape[1:])

    def _chunk(self, corner: Shape) -> Array:
        """The unpacked chunk with this first element."""
        shape, dtype = self._dataset.chunks, self.dtype
        with refusing(self._path, "HDF5"):
            skipped, packed = self._dataset.id.read_direct_chunk(corner)
            applied = [each for bit, each in enumerate(self._filters) if not skipped >> bit & 1]
            size = math.prod(shape) * dtype.itemsize
            content = unpacked(bytes(packed), size) if GZIP in applied else bytes(packed)
            if len(content) != size:
                raise ValueError(f"the chunk at {corner} has another size")
        if SHUFFLE in applied:
            content = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
        return np.frombuffer(content, dtype).reshape(shape)


def read_hdf5(source: Input, names: Sequence[str]) -> list[Any]:
    """The arrays of these names, such as "images" or "train/x"; images stay in the file and are read on demand.

    Args:
        source: stays open until the arrays of labels have been read; the images have the file open for themselves.

    Returns:
        Arrays of up to two dimensions; and those of three or four as :class:`dpcnn.data.rows.FileImages` or
        :class:`ChunkedImages`, as (n, H, W, C).

    Raises:
        DataError: it is not an HDF5 file, or an array is not there, is not one of plain numbers or text, or is damaged.
    """
    with refusing(source.path, "HDF5"):
        opened = h5py.File(source.name, "r", locking=False)
    return [_array(source, opened, name) for name in names]


def _array(source: Input, opened: h5py.File, name: str) -> Any:
    where = f"{source.path}: {printable(name)[:80]}"
    with refusing(source.path, "HDF5"):
        dataset = _find(where, opened, name)
        images = _located(where, source.reader(), dataset)
    if images.ndim > 2:
        return images
    check_memory(source.path, math.prod(images.shape) * images.dtype.itemsize, source.size, AGAIN)
    return images[np.arange(len(images))]


def _find(where: str, opened: h5py.File, name: str) -> h5py.Dataset:
    """The dataset with this name; no link is followed.

    Raises:
        DataError: there is none of plain numbers or text.
    """
    found: Any = opened
    for part in name.strip("/").split("/"):
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) and part else None
        if link is None:
            raise DataError(f"{where}: there is no such array; give the names of the file's arrays (h5ls lists them)")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{where}: is a link to elsewhere; give the array's own file and name")
        found = found[part]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{where}: is a group, not an array; give the name of an array in it")
    _check_dataset(where, found)
    return found


def _check_dataset(where: str, dataset: h5py.Dataset) -> None:
    """Refuse a dataset unless it has plain numbers or text in the file itself, of 1 to 4 dimensions."""
    kind, shape, dtype = dataset.id.get_type(), dataset.shape, dataset.dtype
    plain = kind in BYTES or kind == h5py.h5t.py_create(dtype)
    if dtype.kind not in "buifS" or not plain or not 0 < dtype.itemsize <= MOST_ITEM:
        actual = "text of any length" if h5py.check_string_dtype(dtype) else printable(str(dtype))[:80]
        raise DataError(f"{where}: holds {actual}; expected plain numbers, or text of a fixed length (numpy's 'S')")
    if not shape or len(shape) > 4 or not 0 < min(shape) <= max(shape) <= MOST_LENGTH:
        raise DataError(f"{where}: has the shape {shape}; expected 1 to 4 dimensions, and at least one sample")
    if dataset.is_virtual or dataset.id.get_create_plist().get_external_count():
        raise DataError(f"{where}: its values are in other files; copy them into this one")


def _located(where: str, reader: Reader, dataset: h5py.Dataset) -> Any:
    """The values of a dataset, wherever they lie in the file."""
    properties = dataset.id.get_create_plist()
    layout, offset = properties.get_layout(), dataset.id.get_offset()
    if layout == h5py.h5d.COMPACT:  # at most 64 KiB
        return dataset[()].reshape(_image_shape(dataset.shape))
    if layout == h5py.h5d.CHUNKED:
        return ChunkedImages(reader.path, dataset, _filters(where, dataset))
    if layout != h5py.h5d.CONTIGUOUS or offset is None:
        raise DataError(f"{where}: its values were never written; {AGAIN}")
    return FileImages(reader, offset, _image_shape(dataset.shape), dataset.dtype)


def _image_shape(shape: Shape) -> Shape:
    """The shape (n, H, W, 1) for images (n, H, W); any other shape is unchanged."""
    return (*shape, 1) if len(shape) == 3 else shape


def _filters(where: str, dataset: h5py.Dataset) -> list[int]:
    """The filters of a dataset's chunks in the order in which they were applied: shuffling and gzip, or fewer.

    Raises:
        DataError: there are others, or the chunks are too large.
    """
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(number) for number in range(min(8, properties.get_nfilters()))]
    filters = [each[0] for each in found]
    if filters not in ([], [GZIP], [SHUFFLE], [SHUFFLE, GZIP]):
        names = printable(", ".join(each[3].decode(errors="replace") for each in found))[:80]
        raise DataError(f"{where}: is compressed by {names}; {REPACK}")
    if math.prod(dataset.chunks) * dataset.dtype.itemsize > MOST_CHUNK:
        raise DataError(f"{where}: has chunks {dataset.chunks} of more than {MOST_CHUNK:,} bytes; {REPACK}")
    return filters
