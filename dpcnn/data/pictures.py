"""Images to predict: picture files, and IDX and NPZ files of many images. All untrusted."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Shape
from dpcnn.data.decoding import MOST_BYTES, is_picture, read_image
from dpcnn.data.formats import IDX_BYTES, read_idx
from dpcnn.data.inputs import Input, open_input
from dpcnn.data.kinds import HEAD, not_read
from dpcnn.data.npz import ZIP, read_arrays, read_headers
from dpcnn.data.pixels import BYTES, WHITE, check_values, scaled
from dpcnn.data.shards import Images
from dpcnn.errors import DataError, printable


def open_pictures(path: Path) -> Input:
    """A file of pictures, or stdin for ``-``.

    Raises:
        DataError: it can't be opened, or is too large.
    """
    if path != Path("-"):
        return open_input(path)
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise DataError(f"{path}: at most {MOST_BYTES:,} bytes are read from stdin; give a file")
    return Input(path, io.BytesIO(content))


def read_pictures(source: Input, shape: Shape, resize: str, max_value: float | None = None) -> Images:
    """The images (n, H, W, C) of a file, uint8 or float32 of 0..255, of the shape (H, W, C) that a network takes.

    IDX and NPZ images must have that shape; pictures go through :func:`dpcnn.data.decoding.read_image`.

    Args:
        max_value: the value of white in the uint16 or float images of the training; None: they were uint8.

    Raises:
        DataError: the file has another format or shape, or is damaged, too large or empty.
    """
    path, start = source.path, source.head(HEAD)
    if start[:3] == IDX_BYTES:
        images: NDArray[Any] = read_idx(source)
    elif start[:2] == ZIP:
        images = _of_npz(source, shape, max_value)
    elif is_picture(start):
        return read_image(source, shape, resize)[None]
    else:
        raise not_read(path, start, "a PNG, JPEG, WebP, TIFF, IDX or NPZ file")
    _check_kind(path, images.dtype, images.shape, shape, max_value)
    if images.dtype != np.uint8:
        check_values(str(path), images, max_value)
        images = scaled(images, max_value)
    return images[..., None] if images.ndim == 3 else images


def _check_kind(path: Path, dtype: np.dtype[Any], actual: Shape, shape: Shape, max_value: float | None) -> None:
    """Refuse images unless they are (n, H, W, C), or (n, H, W) for one channel, of a network's shape and types."""
    each = (*actual[1:], 1) if len(actual) == 3 else actual[1:]
    known = [BYTES] if max_value is None else list(WHITE)
    if dtype.newbyteorder("=").name not in known or each != shape:
        raise DataError(f"{path}: {dtype} images of {each}; this network takes {' or '.join(known)} of {shape}")


def _of_npz(source: Input, shape: Shape, max_value: float | None) -> NDArray[Any]:
    """The one array of an NPZ file that holds images: of three dimensions or four."""
    images = {name: header for name, header in read_headers(source).items() if len(header.shape) in (3, 4)}
    if len(images) != 1:
        names = printable(", ".join(images))[:200] or "none"
        raise DataError(f"{source.path}: expected one array of images (n, H, W), found {names}; save one alone")
    (header,) = images.values()
    _check_kind(source.path, header.dtype, header.shape, shape, max_value)
    return read_arrays(source, [header])[0]
