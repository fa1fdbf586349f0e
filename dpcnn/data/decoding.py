"""Picture files of any size, colour and orientation as images of one shape. The files are untrusted."""

import ctypes
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Shape
from dpcnn.data.characters import Picture, like_mnist
from dpcnn.data.inputs import Input, reason
from dpcnn.data.kinds import foreign_kind, is_raw
from dpcnn.data.shards import MNIST, Images
from dpcnn.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
STARTS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"II*\0", b"MM\0*")
"""The first bytes of a file of each format; a TIFF file has one of two orders of bytes."""

MODES = {1: "L", 3: "RGB"}
"""Pillow's names of the colours, by the number of channels."""

MOST_PIXELS, MOST_SIDE = 32_000_000, 20_000
MOST_BYTES = 256 << 20
"""The most bytes of a picture file, or of stdin."""

MOST_SCANS = 100
"""Scans of a JPEG file: each costs a pass over all pixels, and honest files have a dozen."""

KEPT_SIDE = 2048
"""Larger pictures of characters are first reduced by a whole number, to about this many pixels per side."""

ORIENTATION, TILE_WIDTH, TILE_LENGTH = 0x0112, 322, 323
"""Tags of EXIF and TIFF."""


def is_picture(start: bytes) -> bool:
    """Whether a file with these first bytes may be a picture of :data:`FORMATS`."""
    return start.startswith(STARTS) and not foreign_kind(start)


def versions() -> str:
    """The versions of Pillow and its decoders, on which the pixels of a decoded picture may depend.

    Raises:
        DataError: Pillow is not installed.
    """
    _pillow("pictures")
    from PIL import __version__, features

    decoders = {name: features.version(name) for name in ("libjpeg_turbo", "webp", "libtiff")}
    return ", ".join([f"Pillow {__version__}", *(f"{name} {version}" for name, version in decoders.items())])


def read_image(source: Input, shape: Shape, resize: str) -> Images:
    """A picture file as an image, uint8.

    Args:
        shape: (H, W, C) of the image; C is 1 for grey or 3 for red, green and blue.
        resize: the way to that shape, see :data:`dpcnn.data.shards.RESIZE`.

    Raises:
        DataError: it is not a picture, damaged or too large, or Pillow is not installed.
    """
    if shape[2] not in MODES or (resize == MNIST and shape[2] != 1):
        channels = "1 channel" if resize == MNIST else "1 or 3 channels"
        raise DataError(f"{source.path}: a picture can't become an image of {shape}; expected {channels}")
    with _opened(source) as picture:
        if resize != MNIST:
            return _cropped(picture, shape)
        levels = _levels(picture)
    return like_mnist(source.path, levels, (shape[0], shape[1]))[..., None]


def _pillow(what: Path | str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{what}: PNG, JPEG, WebP and TIFF need Pillow; pip install 'dpcnn[pictures]'") from None
    _silence_libtiff()
    return Image


@cache
def _silence_libtiff() -> None:
    """Let libtiff print nothing: it writes what it finds wrong with a file straight to the terminal."""
    from PIL import _imaging

    with suppress(AttributeError):  # a Pillow without libtiff
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


@contextmanager
def _opened(source: Input) -> Iterator[Any]:
    """A picture file as Pillow has it, its size checked, its pixels not yet decoded."""
    path, pillow = source.path, _pillow(source.path)
    from PIL import UnidentifiedImageError

    content = source.plain().read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES or (content[:2] == b"\xff\xd8" and content.count(b"\xff\xda") > MOST_SCANS):
        raise DataError(f"{path}: at most {MOST_BYTES:,} bytes and {MOST_SCANS} scans are read; save it again")
    if is_raw(content):
        raise DataError(f"{path}: a raw picture of a camera, such as DNG, NEF or ARW; convert it to JPEG or PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from Pillow, about sizes and metadata
            with pillow.open(io.BytesIO(content), formats=FORMATS) as picture:
                _check_size(path, *picture.size)
                tiles = getattr(picture, "tag_v2", {})
                _check_size(path, *(int(tiles.get(tag, 1)) for tag in (TILE_WIDTH, TILE_LENGTH)))
                yield picture
    except pillow.DecompressionBombError:
        raise _too_large(path, "too many") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not a picture, or damaged in its first bytes; get the file again") from None
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DataError(f"{path}: can't be read as a picture ({reason(error)}); get the file again") from None


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise _too_large(path, f"{width} x {height}")


def _too_large(path: Path, pixels: str) -> DataError:
    return DataError(
        f"{path}: {pixels} pixels; at most {MOST_PIXELS:,} are read, and {MOST_SIDE:,} a side: make it smaller"
    )


def _cropped(picture: Any, shape: Shape) -> Images:
    """The largest rectangle of the shape's proportions around the picture's centre, resized (bicubic, antialiased).

    A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if at least twice the shape's sides are left. Small pictures
    are turned upright faster than large ones, so this comes last.
    """
    from PIL.Image import Resampling

    H, W, C = shape
    picture.draft(MODES[C], (2 * max(H, W), 2 * max(H, W)))
    picture.load()
    turn, sides_change = _turn(picture)
    size = (H, W) if sides_change else (W, H)
    small = _resizable(picture).resize(size, Resampling.BICUBIC, box=_centre(picture.size, size))
    values = np.asarray(_converted(small if turn is None else small.transpose(turn), MODES[C]))
    return values.reshape(shape)


def _turn(picture: Any) -> tuple[Any, bool]:
    """How a loaded picture is turned upright, and whether that exchanges width and height."""
    from PIL.Image import Transpose

    turns = (
        *(None, Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.FLIP_TOP_BOTTOM),
        *(Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90),
    )
    orientation = picture.getexif().get(ORIENTATION)
    number = orientation - 1 if isinstance(orientation, int) and 1 <= orientation <= len(turns) else 0
    return turns[number], number >= 4


def _centre(sides: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box of the proportions ``size`` around the centre of a picture: left, top, right, bottom."""
    (width, height), (w, h) = sides, size
    if width * h <= height * w:
        margin = (height - width * h / w) / 2
        return 0, margin, width, height - margin
    margin = (width - height * w / h) / 2
    return margin, 0, width - margin, height


def _resizable(picture: Any) -> Any:
    """A loaded picture in a mode that can be resized."""
    if picture.mode.startswith("I"):  # 16 bits
        return picture.convert("I")
    if picture.has_transparency_data:
        return picture if picture.mode in ("LA", "RGBA") else picture.convert("RGBA")
    return picture if picture.mode in ("L", "RGB", "CMYK", "F") else picture.convert("RGB")


def _converted(picture: Any, mode: str) -> Any:
    """A small picture as grey or RGB: 16 bits scaled to 8, floats cut off at 0 and 255, over white if transparent."""
    from PIL import Image

    if picture.mode in ("I", "F"):
        levels = np.asarray(picture, np.float64) * (255 / 65535 if picture.mode == "I" else 1)
        picture = Image.fromarray(np.clip(np.nan_to_num(levels), 0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert(mode)


def _levels(picture: Any) -> Picture:
    """The grey values 0..255 of an open picture, upright, with transparent pixels as white."""
    from PIL import Image, ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16 bits
        return np.asarray(_reduced(picture.convert("I")), np.float64) * (255 / 65535)
    if not picture.has_transparency_data:
        return np.asarray(_reduced(picture.convert("L")), np.float64)
    layered = _reduced(picture.convert("RGBA"))
    white = Image.new("RGBA", layered.size, "white")
    return np.asarray(Image.alpha_composite(white, layered).convert("L"), np.float64)


def _reduced(picture: Any) -> Any:
    factor = -(-max(picture.size) // KEPT_SIDE)
    return picture.reduce(factor) if factor > 1 else picture
