"""Pictures to predict, all untrusted: characters in PNG or JPEG, made like those of MNIST, and images in IDX or NPZ."""

import io
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Shape
from dpcnn.data.formats import IDX_BYTES, read_idx
from dpcnn.data.inputs import Input, open_input, reason
from dpcnn.data.npz import ZIP, read_arrays, read_headers
from dpcnn.data.shards import Images
from dpcnn.errors import DataError, printable

MOST_PIXELS, MOST_SIDE = 32_000_000, 20_000
MOST_BYTES = 256 << 20
"""The most bytes of a PNG or JPEG file, or of stdin."""

MOST_SCANS = 100
"""The most scans of a JPEG file: each costs a pass over all pixels, and usual files have about a dozen."""

KEPT_SIDE = 2048
"""Larger pictures are first reduced by a whole number, to about this many pixels per side."""

INK = 0.2
"""The fraction of the strongest ink from which on a pixel belongs to the drawing, when its edges are located."""

Picture = NDArray[np.float64]


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


def read_pictures(source: Input, shape: Shape) -> Images:
    """The images (n, H, W, C) of a file, uint8, for a network with the input shape (H, W, C).

    IDX and NPZ images are not changed; PNG and JPEG go through :func:`like_mnist`.

    Raises:
        DataError: the file has another format or shape, or is damaged, too large or empty.
    """
    path, start = source.path, source.head(4)
    if start[:3] == IDX_BYTES:
        images: NDArray[Any] = read_idx(source)
    elif start[:2] == ZIP:
        images = _of_npz(source, shape)
    elif start == b"\x89PNG" or start[:2] == b"\xff\xd8":
        if shape[-1] != 1:
            raise DataError(f"{path}: this network takes images of {shape}; PNG and JPEG are read as grey images")
        return like_mnist(path, _grey(source), (shape[0], shape[1]))[None, :, :, None]
    else:
        raise DataError(f"{path}: expected a PNG, JPEG, IDX or NPZ file; it starts with {start!r}")
    _check_kind(path, images.dtype, images.shape, shape)
    return images[..., None] if images.ndim == 3 else images


def _check_kind(path: Path, dtype: np.dtype[Any], actual: Shape, shape: Shape) -> None:
    """Refuse images unless they are uint8 (n, H, W, C), or (n, H, W) for one channel, with a network's shape."""
    each = (*actual[1:], 1) if len(actual) == 3 else actual[1:]
    if dtype != np.uint8 or each != shape:
        raise DataError(f"{path}: {dtype} images of {each}; this network takes uint8 of {shape}")


def _of_npz(source: Input, shape: Shape) -> NDArray[Any]:
    """The one array of an NPZ file that holds images: of three dimensions or four."""
    images = {name: header for name, header in read_headers(source).items() if len(header.shape) in (3, 4)}
    if len(images) != 1:
        names = printable(", ".join(images))[:200] or "none"
        raise DataError(f"{source.path}: expected one array of images (n, H, W), found {names}")
    (header,) = images.values()
    _check_kind(source.path, header.dtype, header.shape, shape)
    return read_arrays(source, [header])[0]


def like_mnist(path: Path, picture: Picture, size: tuple[int, int]) -> Images:
    """Make a character like those of MNIST: light on dark, in a box of 5/7 of the image, its centre of mass centred.

    LeCun et al., "Gradient-based learning applied to document recognition" (1998), section III.A: 20 of 28 pixels.

    Args:
        picture: (h, w) grey values, dark on light or light on dark; the border shows which.
        size: (H, W) of the image to make.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: the picture is blank.
    """
    from PIL import Image

    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = float(np.median(border))
    sign = -1 if background > picture.mean() else 1
    ink = np.clip(sign * (picture - background), 0, None)
    if ink.max() < 16:  # of 255: less is noise
        raise DataError(f"{path}: the picture is blank; expected one character, darker or lighter than its background")
    ink *= 255 / ink.max()
    rows, columns = (np.flatnonzero((ink > INK * 255).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = min(size) * 5 / 7
    scale = box / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    resampling = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), resampling))
    image = np.zeros(size, np.uint8)
    starts = [_start(small.sum(axis=1 - axis), small.shape[axis], size[axis]) for axis in (0, 1)]
    image[starts[0] : starts[0] + height, starts[1] : starts[1] + width] = np.clip(small.round(), 0, 255)
    return image


def _start(mass: NDArray[Any], length: int, room: int) -> int:
    """The start of a drawing along an axis, so that its centre of mass is at pixel room / 2, if it fits."""
    centre = float((mass * np.arange(length)).sum() / mass.sum())
    return min(max(round(room / 2 - centre), 0), room - length)


def _grey(source: Input) -> Picture:
    """A PNG or JPEG as grey values 0..255, upright, with transparent pixels as white."""
    path = source.path
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{path}: PNG and JPEG need Pillow; get it: pip install 'dpcnn[pictures]'") from None
    content = source.plain().read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES or (content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MOST_SCANS):
        raise DataError(f"{path}: at most {MOST_BYTES:,} bytes and {MOST_SCANS} scans are read; save it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Pillow, about sizes and metadata
            with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
                _check_size(path, *picture.size)
                return _levels(picture)
    except Image.DecompressionBombError:
        raise _too_large(path, "too many") from None
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DataError(f"{path}: can't be read as a PNG or JPEG ({reason(error)}); get the file again") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise _too_large(path, f"{width} x {height}")


def _too_large(path: Path, pixels: str) -> DataError:
    return DataError(
        f"{path}: {pixels} pixels; at most {MOST_PIXELS:,} are read, and {MOST_SIDE:,} a side: make it smaller"
    )


def _levels(picture: Any) -> Picture:
    """The grey values of an open picture whose size has been checked."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16 bits
        return np.asarray(_shrunk(picture.convert("I")), np.float64) * (255 / 65535)
    if not picture.has_transparency_data:
        return np.asarray(_shrunk(picture.convert("L")), np.float64)
    layered = _shrunk(picture.convert("RGBA"))
    white = Image.new("RGBA", layered.size, "white")
    return np.asarray(Image.alpha_composite(white, layered).convert("L"), np.float64)


def _shrunk(picture: Any) -> Any:
    factor = -(-max(picture.size) // KEPT_SIDE)
    return picture.reduce(factor) if factor > 1 else picture
