"""Checkpoints: one file each, whole or absent, checked before a byte of it is believed.

A checkpoint starts with a block of 512 bytes, ``dpcnn checkpoint 2``, the sha256 of all that
follows, and zeros; what follows is an HDF5 file (the block is HDF5's user block, so any HDF5 tool
opens the checkpoint as it is)::

    /parameters/NAME    each parameter, float32, in its own shape
    /optimizer/NAME     the optimizer's vectors, float32 (size,)
    /state              JSON, bytes: where the run is, its configuration, its metrics so far

It holds nothing about ranks. The sum is held against the bytes before HDF5 sees them.
"""

import errno
import hashlib
import io
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dpcnn.config import Config, from_dict
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.metrics import Cursor
from dpcnn.nn.network import Network

Vector = NDArray[np.float32]

MAGIC = b"dpcnn checkpoint 2\n"
BLOCK = 512
LAST, BEST = "last.h5", "best.h5"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        parameters: by full name, in order.
        optimizer: the optimizer's flat vectors by name.
        cursor: where the run is, with its metrics so far.
        config: of the run, the seed included.
        image_shape, classes: what the network takes and tells apart.
        data: the data set's checksum.
        weights_sha256: of the flat parameter vector.
        fingerprint: of the numerics that it was made with.
    """

    parameters: dict[str, Vector]
    optimizer: dict[str, Vector]
    cursor: Cursor
    config: Config
    image_shape: tuple[int, ...]
    classes: int
    data: str
    weights_sha256: str
    fingerprint: dict[str, Any]

    def network(self) -> Network:
        """The network that the parameters are of.

        Raises:
            ConfigError: the configuration's layers don't fit each other, or the images.
        """
        return self.config.network(self.image_shape, self.classes)

    def state(self) -> dict[str, Any]:
        """All but the arrays, as JSON has it."""
        return {
            "cursor": asdict(self.cursor),
            "config": asdict(self.config),
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "data": self.data,
            "weights_sha256": self.weights_sha256,
            "fingerprint": self.fingerprint,
        }


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that ``path`` is either the old file or the whole new one.

    Raises:
        CheckpointError: the file can't be written; what was at ``path`` is untouched.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", userblock_size=BLOCK, libver="earliest", track_order=True) as file:
        for group, arrays in (("parameters", checkpoint.parameters), ("optimizer", checkpoint.optimizer)):
            place = file.create_group(group, track_order=True)
            for name, array in arrays.items():
                place.create_dataset(name, data=array, track_times=False)
        file.create_dataset("state", data=np.frombuffer(json.dumps(checkpoint.state()).encode(), np.uint8))
    body = image.getbuffer()[BLOCK:]
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as out:
            out.write(_head(body))
            out.write(body)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        hint = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "mend this"
        raise CheckpointError(
            f"{path}: can't write the checkpoint ({error.strerror}); the one before it is untouched: "
            f"{hint}, then go on with --resume"
        ) from None


def _head(body: Any) -> bytes:
    return (MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n").ljust(BLOCK, b"\0")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: it can't be read, is damaged, or is not a checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give --resume a checkpoint's path") from None
    if not content.startswith(MAGIC):
        raise CheckpointError(f"{path}: not a dpcnn checkpoint: it starts with {content[:18]!r}")
    if content[:BLOCK] != _head(memoryview(content)[BLOCK:]):
        raise CheckpointError(
            f"{path}: damaged: its {len(content)} bytes don't fit their sha256; "
            "delete it, and --resume goes on from the one before"
        )
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            parameters = _arrays(path, file, "parameters", len(content))
            optimizer = _arrays(path, file, "optimizer", len(content))
            state = json.loads(_array(path, file, "state", np.uint8, len(content)).tobytes())
        return Checkpoint(
            parameters,
            optimizer,
            cursor=Cursor.from_dict(state["cursor"]),
            config=from_dict(state["config"]),
            image_shape=(int(state["image_shape"][0]), int(state["image_shape"][1]), int(state["image_shape"][2])),
            classes=int(state["classes"]),
            data=str(state["data"]),
            weights_sha256=str(state["weights_sha256"]),
            fingerprint=dict(state["fingerprint"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{path}: not a checkpoint that this dpcnn understands ({error})") from None


def _arrays(path: Path, file: h5py.File, group: str, limit: int) -> dict[str, Vector]:
    if not isinstance(file.get(group, getlink=True), h5py.HardLink) or not isinstance(file[group], h5py.Group):
        raise CheckpointError(f"{path}: no group {group!r} of its own")
    return {name: _array(path, file[group], name, np.float32, limit) for name in file[group]}


def _array(path: Path, group: h5py.Group, name: str, dtype: Any, limit: int) -> NDArray[Any]:
    """A dataset that really lies in the file, uncompressed: so it can't be larger than that is."""
    where = f"{path}: {group.name.rstrip('/')}/{name}"
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], h5py.Dataset):
        raise CheckpointError(f"{where}: a link or no dataset; it is not followed")
    dataset = group[name]
    if dataset.dtype != dtype or dataset.is_virtual or dataset.external or dataset.chunks:
        raise CheckpointError(f"{where}: expected plain {np.dtype(dtype)} values in the file itself")
    if dataset.nbytes > limit:
        raise CheckpointError(f"{where}: {dataset.nbytes} bytes in a file of {limit}")
    return np.asarray(dataset[...])


def step_name(step: int) -> str:
    """The file name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}.h5"


def point(folder: Path, name: str, target: str | None) -> None:
    """Make ``name`` a link to the checkpoint ``target`` of the same folder, in one move; None: remove it."""
    link = folder / name
    if target is None:
        link.unlink(missing_ok=True)
        return
    temporary = folder / f".{name}.part"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the one that is the best."""
    best = os.path.basename(os.path.realpath(folder / BEST))
    found = sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.h5", path.name))
    for path in found[:-keep]:
        if path.name != best:
            path.unlink()


def weights_sha256(vector: Vector) -> str:
    """The sha256 of the flat parameter vector's little-endian float32 bytes."""
    return hashlib.sha256(vector.astype("<f4", copy=False).tobytes()).hexdigest()
