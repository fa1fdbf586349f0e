"""What files and folders are that can't be used as they are, for messages."""

import os
from itertools import islice
from pathlib import Path

from dpcnn.errors import DataError

BOXES = {
    b"avif": "an AVIF picture",
    b"crx ": "a raw picture of a camera (CR3)",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC picture"),
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V "), "a film"),
}
"""Types of files that begin with a box "ftyp", by the brand in the bytes 8 to 11."""

STARTS = {
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"8BPS": "a Photoshop picture",
    b"%PDF": "a PDF document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file, such as an SVG drawing",
    b"FUJIFILM": "a raw picture of a camera (RAF)",
    **dict.fromkeys((b"IIRO", b"IIRS", b"MMOR"), "a raw picture of a camera (ORF)"),
    b"IIU\0": "a raw picture of a camera (RW2)",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\0\0\x01\0": "an icon (ICO)",
}
"""Types of files by their first bytes."""

SUBFILE_TYPE, COLOURS, MORE_PICTURES, DNG_VERSION = 254, 262, 330, 50706
"""Tags of TIFF: NewSubfileType, PhotometricInterpretation, SubIFDs, DNGVersion."""

RAW_COLOURS = 32803, 34892
"""The values of :data:`COLOURS` for the pixels of a sensor: a colour filter array, and one that is interpolated."""

SHORT = 3
"""TIFF's type of whole numbers of two bytes."""

HEAD = 12
"""The bytes at the start of a file by which its type is known."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".gif", ".bmp")
"""The ends of the names of picture files, in lower case."""

LOOKED_AT = 10_000
"""The most names of files at which :func:`first_picture` looks."""


def foreign_kind(start: bytes) -> str:
    """The type of a file that is not read, from its first :data:`HEAD` bytes; empty if it is not known."""
    if start[4:8] == b"ftyp":
        return BOXES.get(start[8:12], "a HEIC picture or a film")
    if start[8:10] == b"CR" and start[:4] == b"II*\0":
        return "a raw picture of a camera (CR2)"
    return next((kind for first, kind in STARTS.items() if start.startswith(first)), "")


def is_raw(content: bytes) -> bool:
    """Whether a file is a raw picture of a camera that begins like TIFF: DNG, NEF, ARW, PEF and others.

    The first picture of such a file is that of the sensor, or a thumbnail with the sensor's as a further picture.
    """
    tags = tiff_tags(content) if content.startswith((b"II*\0", b"MM\0*")) else {}
    thumbnail = tags.get(SUBFILE_TYPE, 0) & 1 and MORE_PICTURES in tags
    return bool(thumbnail) or DNG_VERSION in tags or tags.get(COLOURS) in RAW_COLOURS


def tiff_tags(content: bytes) -> dict[int, int]:
    """The tags of the first picture of a TIFF file (TIFF 6.0, section 2), each with the whole number in its entry.

    What lies beyond the end of the file counts as 0.
    """

    def number(place: int, size: int) -> int:
        return int.from_bytes(content[place : place + size], "little" if content[:2] == b"II" else "big")

    start = number(4, 4)
    entries = [start + 2 + 12 * place for place in range(number(start, 2))]
    return {number(entry, 2): number(entry + 8, 2 if number(entry + 2, 2) == SHORT else 4) for entry in entries}


def not_read(path: Path, start: bytes, expected: str) -> DataError:
    """The error for a file of another type.

    Args:
        start: its first :data:`HEAD` bytes.
        expected: the types that are read, with an article.
    """
    if not start:
        return DataError(f"{path}: an empty file; expected {expected}; get the file again, or delete it")
    if kind := foreign_kind(start):
        return DataError(f"{path}: {kind}; expected {expected}; convert it to JPEG or PNG")
    return DataError(f"{path}: expected {expected}; it starts with {start[:4]!r}")


def first_picture(folder: Path) -> Path | None:
    """A file in a folder, or in its folders, whose name is that of a picture: its path relative to the folder."""
    paths = (Path(where, name) for where, _, names in os.walk(folder) for name in sorted(names))
    found = (path for path in islice(paths, LOOKED_AT) if path.name.lower().endswith(SUFFIXES))
    return next((path.relative_to(folder) for path in found), None)
