"""Checkpoints: one file each, complete or absent, whose checksum is verified before anything else is read.

A checkpoint starts with a block of 512 bytes, ``dpcnn checkpoint 4``, the sha256 of all that
follows, and zeros; what follows is an HDF5 file (the block is HDF5's user block, so any HDF5 tool
opens the checkpoint as it is)::

    /parameters/NAME    each parameter, float32, in its own shape
    /optimizer/NAME     the arrays of the optimizer's state, float32 (size,)
    /state              JSON, bytes: progress, configuration, metrics so far

It contains nothing about ranks. The checksum is compared with the bytes before HDF5 reads them.
"""

import errno
import hashlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpcnn.base.arrays import Array, Shape, Vector, bytes_of
from dpcnn.base.fields import FieldError, Table, label, load_json, name
from dpcnn.base.files import Folder, open_plain
from dpcnn.config import Config, from_dict
from dpcnn.data.classes import Names, parse_names
from dpcnn.data.shards import parse_resize
from dpcnn.errors import CheckpointError, ConfigError, ImportNeeded, printable
from dpcnn.nn.network import Network
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.runs.checkpoint_file import BLOCK, MAGIC, fill, head
from dpcnn.runs.progress import Progress

AVERAGE = "ema"
"""The name of the average of the weights."""

MOST_STATE = 32 << 20
"""The largest size of the state in bytes; the parsed JSON may take 30 times as much memory."""

MOST_SIDE = 1 << 16
"""The largest height or width of an image in pixels, and the largest number of classes."""


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint.

    Attributes:
        parameters: by full name, in order.
        optimizer: the optimizer's flat vectors by name.
        progress: the progress of the run, with its metrics so far.
        config: the configuration of the run, including the seed.
        image_shape: (H, W, C) of the images.
        class_names: the name of each class.
        resize: how a picture becomes an image for the network, see :data:`dpcnn.data.shards.RESIZE`.
        data: the data set's checksum.
        weights_sha256: of the flat parameter vector.
        fingerprint: that of the numerics of the run.
        labels: of a model from Python, the label of each class: whole numbers, truth values or texts.
        max_value: the value of white in the arrays of the training; None: it depends on their type.
    """

    parameters: dict[str, Vector]
    optimizer: dict[str, Vector]
    progress: Progress
    config: Config
    image_shape: tuple[int, ...]
    class_names: Names
    resize: str
    data: str
    weights_sha256: str
    fingerprint: dict[str, Any]
    labels: tuple[int | str, ...] = ()
    max_value: float | None = None

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def network(self) -> Network:
        """The network to which the parameters belong.

        Raises:
            ConfigError: the configuration's layers do not fit each other or the images.
        """
        return self.config.network(self.image_shape, self.classes)

    def state(self) -> dict[str, Any]:
        """Everything except the arrays, as values for JSON."""
        return {
            "progress": asdict(self.progress),
            "config": self.config.as_dict(),
            "image_shape": list(self.image_shape),
            "classes": self.classes,
            "class_names": list(self.class_names),
            "resize": self.resize,
            "data": self.data,
            "weights_sha256": self.weights_sha256,
            "fingerprint": self.fingerprint,
        } | self._of_arrays()

    def _of_arrays(self) -> dict[str, Any]:
        values = {"labels": self.labels, "max_value": self.max_value}
        return {"estimator": values} if self.labels or self.max_value is not None else {}


def vector_names(config: Config) -> list[str]:
    """The vectors of a run besides its parameters: those of the optimizer, and the average of the weights, if any."""
    return [*OPTIMIZERS[config.optimizer].state_names, *([AVERAGE] if config.ema_decay else [])]


def write_into(opened: io.BufferedRandom, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into an empty file."""
    groups = {"parameters": checkpoint.parameters, "optimizer": checkpoint.optimizer}
    fill(opened, groups, json.dumps(checkpoint.state()).encode())


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as a file that belongs to no run: see :func:`store`."""
    try:
        folder = Folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}; give the checkpoint another folder") from None
    with folder:
        store(folder, path.name, checkpoint, then="try again")


def store(folder: Folder, file: str, checkpoint: Checkpoint, then: str = "continue with --resume") -> None:
    """Write a checkpoint into an open folder, so that the file is either the old one or the whole new one.

    Args:
        then: what the user does next if it fails, once the cause is gone.

    Raises:
        CheckpointError: the file can't be written; an old file is untouched.
    """
    try:
        with folder.replacing(file) as opened:
            write_into(opened, checkpoint)
    except OSError as error:
        hint = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "fix this"
        raise CheckpointError(
            f"{folder.path / file}: can't write the checkpoint ({error.strerror}); the one before it is untouched: "
            f"{hint}, then {then}"
        ) from None


def read(path: Path) -> Checkpoint:
    """Read a checkpoint and check all of it.

    Raises:
        CheckpointError: it can't be read, is damaged, or is not a checkpoint.
    """
    whole = _verified(path)
    try:
        with h5py.File(io.BytesIO(whole), "r") as file:
            return _parse(file, len(whole))
    except ImportNeeded as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (FieldError, ConfigError, CheckpointError) as error:
        raise CheckpointError(f"{path}: not a checkpoint that this dpcnn understands ({error})") from None
    except MemoryError:
        raise
    except Exception as error:  # h5py and HDF5 raise many types of errors for a damaged file
        why = printable(str(error))
        raise CheckpointError(f"{path}: not a checkpoint that this dpcnn understands ({why})") from None


def _verified(path: Path) -> bytes:
    """The bytes of a checkpoint, after a comparison with its checksum."""
    try:
        with open_plain(path) as file:
            block = file.read(BLOCK)
            if not block.startswith(MAGIC):
                kind = MAGIC.decode().strip()
                raise CheckpointError(
                    f"{path}: not a dpcnn checkpoint: expected {kind!r}, it starts with {block[:18]!r}"
                )
            whole = block + file.read()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give a checkpoint's path") from None
    if block != head(hashlib.sha256(memoryview(whole)[BLOCK:]).hexdigest()):
        raise CheckpointError(
            f"{path}: damaged: its {len(whole)} bytes do not match their sha256; "
            "delete it, and --resume continues from the one before"
        )
    return whole


def _parse(file: h5py.File, room: int) -> Checkpoint:
    """The checkpoint in a file, after checks of the types and the consistency of all values.

    Arrays are looked up by the names that the network and the optimizer give them: a group may list many others.
    Each lies in the file itself; neither the parameters nor the optimizer's arrays take more memory than the file is
    large, ``room`` bytes.

    Raises:
        FieldError, ConfigError: a value is wrong.
    """
    state = Table(load_json(_array(file, "state", np.uint8, (-1,), min(room, MOST_STATE)).tobytes()), "state")
    config = from_dict(state.table("config").all(), "config.", whole=True)
    shape, classes = state.integers("image_shape", 3, least=1, most=MOST_SIDE), state.integer("classes", 1, MOST_SIDE)
    network = config.network(shape, classes)
    if 4 * network.size > room:
        raise FieldError(f"{network.size:,} parameters are more than the file can hold")
    parameters = {
        parameter.name: _array(_group(file, "parameters"), parameter.name, np.float32, parameter.shape, room)
        for parameter in network.parameters
    }
    optimizer = _group(file, "optimizer")
    names = vector_names(config)
    stored = [name for name in names if name in optimizer]
    if len(stored) * 4 * network.size > room:
        raise FieldError("the optimizer's arrays are larger than the file")
    if stored and stored != names:
        raise FieldError(f"optimizer: expected {', '.join(names)}, found {', '.join(stored)}")
    checkpoint = Checkpoint(
        parameters,
        {name: _array(optimizer, name, np.float32, (network.size,), room) for name in stored},
        Progress.from_dict(state.value("progress")),
        config,
        shape,
        class_names=parse_names(state, classes),
        resize=parse_resize(state),
        data=state.text("data") and state.sha256("data"),
        weights_sha256=state.sha256("weights_sha256"),
        fingerprint=_fingerprint(state.table("fingerprint")),
        **(_estimator(state.table("estimator"), classes) if "estimator" in state else {}),
    )
    if checkpoint.weights_sha256 != weights_sha256(*parameters.values()):
        raise FieldError("weights_sha256: does not match the parameters")
    return checkpoint


def _estimator(table: Table, classes: int) -> dict[str, Any]:
    """What a model from Python needs besides its network."""
    labels = [label(value, "labels") for value in table.items("labels")]
    if labels and (len(labels) != classes or len(set(labels)) < classes or len(set(map(type, labels))) > 1):
        raise FieldError(f"labels: expected {classes} different labels of one type")
    known = table.value("max_value") is not None
    return {"labels": tuple(labels), "max_value": table.number("max_value") if known else None}


def _fingerprint(table: Table) -> dict[str, Any]:
    """The values of :func:`dpcnn.base.numerics.fingerprint`."""
    features = [name(feature, "fingerprint.cpu_features") for feature in table.items("cpu_features", 1000)]
    return {"numpy": table.name("numpy"), "blas": table.name("blas"), "cpu_features": features} | {
        "machine": table.name("machine")
    }


def _group(file: h5py.File, name: str) -> h5py.Group:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Group):
        raise FieldError(f"expected a group {name!r} in the file itself")
    return file[name]


def _array(group: h5py.Group, key: str, dtype: Any, shape: Shape, room: int) -> Array:
    """Read a dataset that the file itself stores, uncompressed, with finite values; -1 in ``shape``: any length."""
    where = f"{group.name.rstrip('/')}/{key}"
    if not isinstance(group.get(key, getlink=True), h5py.HardLink) or not isinstance(group[key], h5py.Dataset):
        raise FieldError(f"{where}: expected a dataset in the file itself, not a link")
    dataset = group[key]
    if dataset.dtype != dtype or dataset.is_virtual or dataset.external or dataset.chunks or not dataset.size:
        raise FieldError(f"{where}: expected plain {np.dtype(dtype)} values in the file itself")
    if dataset.shape != shape and shape != (-1,):
        raise FieldError(
            f"the checkpoint is of another model: {key} is {dataset.shape} in the checkpoint and {shape} in the model; "
            "use the model of the checkpoint's run"
        )
    if dataset.id.get_offset() is None or dataset.nbytes > room:
        raise FieldError(f"{where}: {dataset.nbytes:,} bytes are more than the file can hold")
    array = np.asarray(dataset[...])
    if not np.isfinite(array).all():
        raise FieldError(f"{where}: some values are not finite")
    return array


def weights_sha256(*params: Array) -> str:
    """The sha256 of the little-endian float32 bytes of the flat parameter vector, or of all parameters in order."""
    digest = hashlib.sha256()
    for array in params:
        digest.update(bytes_of(array.astype("<f4", copy=False)))
    return digest.hexdigest()
