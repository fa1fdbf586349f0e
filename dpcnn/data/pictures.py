"""Pictures to predict: PNG and JPEG of single characters, made like MNIST's, and IDX and NPZ of many. All untrusted."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.shards import Images
from dpcnn.data.sources import parse_idx
from dpcnn.errors import DataError
from dpcnn.memory import Shape

MOST_PIXELS, MOST_BYTES = 50_000_000, 1 << 30
INK = 0.2
"""Of the strongest ink, how much a pixel needs to count as drawn upon, where the drawing's edges are looked for."""

Picture = NDArray[np.float64]


def read_pictures(path: Path, content: bytes, shape: Shape) -> Images:
    """The images (n, H, W, C) of a file, of the shape (H, W, C) that a network takes.

    IDX and NPZ images are taken as they are; PNG and JPEG go through :func:`like_mnist`.

    Raises:
        DataError: it is none of these, damaged, too large, of another shape, or empty.
    """
    if content[:2] == b"\x1f\x8b":
        content = _unpacked(path, content)
    if content[:3] == b"\0\0\x08":
        images = parse_idx(path, content)
    elif content[:4] == b"PK\x03\x04":
        images = _of_npz(path, content)
    elif content[:4] == b"\x89PNG" or content[:2] == b"\xff\xd8":
        if shape[-1] != 1:
            raise DataError(f"{path}: this network takes images of {shape}; PNG and JPEG are for grey ones")
        return like_mnist(path, _grey(path, content), (shape[0], shape[1]))[None, :, :, None]
    else:
        raise DataError(f"{path}: expected a PNG, JPEG, IDX or NPZ file; it starts with {content[:4]!r}")
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise DataError(f"{path}: {images.dtype} images of {images.shape[1:]}; this network takes uint8 of {shape}")
    return images


def like_mnist(path: Path, picture: Picture, size: tuple[int, int]) -> Images:
    """A character as MNIST has it: light on dark, in a box of 5/7 of the image, its centre of mass in the middle.

    LeCun et al., "Gradient-based learning applied to document recognition" (1998), section III.A: 20 of 28 pixels.

    Args:
        picture: (h, w) grey values, dark on light or light on dark; the border tells which.
        size: (H, W) of the image to make.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: nothing is drawn.
    """
    from PIL import Image

    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = float(np.median(border))
    sign = -1 if background > picture.mean() else 1
    ink = np.clip(sign * (picture - background), 0, None)
    if ink.max() < 16:  # of 255: less is noise
        raise DataError(f"{path}: nothing is drawn in it; expected one character, darker or lighter than its ground")
    ink *= 255 / ink.max()
    rows, columns = (np.flatnonzero((ink > INK * 255).any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    box = min(size) * 5 / 7
    scale = box / max(ink.shape)
    height, width = (max(1, round(scale * side)) for side in ink.shape)
    way = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), way))
    made = np.zeros(size, np.uint8)
    places = [_start(small.sum(axis=1 - axis), small.shape[axis], size[axis]) for axis in (0, 1)]
    made[places[0] : places[0] + height, places[1] : places[1] + width] = np.clip(small.round(), 0, 255)
    return made


def _start(mass: NDArray[Any], length: int, room: int) -> int:
    """Where a drawing begins along an axis, so that its centre of mass is at pixel room / 2, as far as it fits in."""
    centre = float((mass * np.arange(length)).sum() / mass.sum())
    return min(max(round(room / 2 - centre), 0), room - length)


def _grey(path: Path, content: bytes) -> Picture:
    """A PNG or JPEG as grey values 0..255, the right way up, what is transparent as white."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise DataError(f"{path}: PNG and JPEG need Pillow; get it: pip install 'dpcnn[pictures]'") from None
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"{path}: {picture.width} x {picture.height} pixels; at most {MOST_PIXELS:,} are read")
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I"):
                return np.asarray(upright, np.float64) * (255 / 65535)
            layered = upright.convert("RGBA")
            white = Image.new("RGBA", layered.size, "white")
            return np.asarray(Image.alpha_composite(white, layered).convert("L"), np.float64)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: can't be read as a PNG or JPEG ({error}); get the file again") from None


def _unpacked(path: Path, content: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be unpacked ({error}); get the file again") from None
    if len(unpacked) > MOST_BYTES:
        raise DataError(f"{path}: more than {MOST_BYTES:,} bytes when unpacked")
    return unpacked


def _of_npz(path: Path, content: bytes) -> Images:
    """The one array of an NPZ file that holds images: of three dimensions or four."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: array for name in file.files if (array := file[name]).ndim in (3, 4)}
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        raise DataError(f"{path}: can't be read as NPZ ({error}); get the file again") from None
    if len(found) != 1:
        raise DataError(f"{path}: expected one array of images (n, H, W), found {', '.join(found) or 'none'}")
    return next(iter(found.values()))
