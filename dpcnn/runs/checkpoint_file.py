"""The file of a checkpoint: a block with a checksum, and an HDF5 file, which is written without a copy in memory."""

import hashlib
import io
from collections.abc import Mapping

import h5py
import numpy as np

from dpcnn.base.arrays import Vector, bytes_of

MAGIC = b"dpcnn checkpoint 4\n"
BLOCK = 512
PIECE = 4 << 20
"""Bytes that are written and hashed at a time: the second of the two finds them in the processor's cache."""

Groups = Mapping[str, Mapping[str, Vector]]


def head(digest: str) -> bytes:
    """The block with the sha256 of all that follows."""
    return (MAGIC + digest.encode() + b"\n").ljust(BLOCK, b"\0")


def fill(opened: io.BufferedRandom, groups: Groups, state: bytes) -> None:
    """Fill an empty file with the arrays of some groups, and with a dataset ``state``.

    HDF5 only lays out the file. The elements are written and hashed in the order of the file, in small pieces, without
    the lock that h5py holds for all threads while it writes.
    """
    digest = hashlib.sha256()
    places = _lay_out(opened, groups, state)
    opened.seek(BLOCK)
    for place in sorted(places):
        digest.update(opened.read(place - opened.tell()))
        elements = bytes_of(places[place])
        for start in range(0, len(elements), PIECE):
            opened.write(elements[start : start + PIECE])
            digest.update(elements[start : start + PIECE])
    digest.update(opened.read())
    opened.seek(0)
    opened.write(head(digest.hexdigest()))


def _lay_out(opened: io.BufferedRandom, groups: Groups, state: bytes) -> dict[int, Vector]:
    """Write all of the HDF5 file except the elements of the arrays, and return each array by its place in the file."""
    places = {}
    with h5py.File(opened, "w", userblock_size=BLOCK, libver="earliest", track_order=True) as file:
        for title, arrays in groups.items():
            group = file.create_group(title, track_order=True)
            for key, array in arrays.items():
                dataset = group.create_dataset(key, array.shape, array.dtype, track_times=False)
                dataset[(0,) * array.ndim] = 0  # HDF5 gives a dataset its place with its first element
                places[dataset.id.get_offset()] = array
        file.create_dataset("state", data=np.frombuffer(state, np.uint8))
    return places
