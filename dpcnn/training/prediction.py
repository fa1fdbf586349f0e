"""The classes, labels or values that a checkpoint's network predicts for images."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.base.numerics import check
from dpcnn.data.classes import Names
from dpcnn.data.pictures import open_pictures, read_pictures
from dpcnn.data.shards import Images
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import Loss
from dpcnn.nn.network import Network
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint

Say = Callable[[str], None]
Refuse = Callable[[DataError], None]
Prediction = dict[str, Any]


def fail(error: DataError) -> None:
    """Raise an error."""
    raise error


def predictions(checkpoint: Path, paths: Sequence[Path], say: Say, refuse: Refuse = fail) -> Iterator[Prediction]:
    """The predictions of a checkpoint, or of a run's folder, for the images of files: see :func:`predict_files`."""
    yield from predict_files(read(find_checkpoint(checkpoint)), paths, say, refuse)


def predict_files(known: Checkpoint, paths: Sequence[Path], say: Say, refuse: Refuse = fail) -> Iterator[Prediction]:
    """Predict the images of files, one file after the other.

    Args:
        paths: files; or folders, whose files that can't be read are skipped.
        say: is called with a line for each file of a folder that is skipped.
        refuse: is called with the error of each file of ``paths`` that can't be read, and if folders have no such file.

    Yields:
        For each image its "file", its number in the file as "image", and the loss's answer with names: the "class" and
        its "name", or the "labels" and their "names", with the "probabilities" by name; or the "values" by name.

    Raises:
        CheckpointError, DataError, ConfigError: the checkpoint or a file can't be used, or ``paths`` is empty.
    """
    loss = known.config.make_loss()
    for path, number, row in file_outputs(known, paths, say, refuse):
        yield {"file": str(path), "image": number, **_named(loss.answer(row), known.class_names)}


def file_outputs(
    known: Checkpoint, paths: Sequence[Path], say: Say, refuse: Refuse = fail
) -> Iterator[tuple[Path, int, Array]]:
    """For each image of :func:`predict_files` its file, its number in it, and its probabilities or values (K,)."""
    if not paths:
        raise DataError("no file to predict; give at least one file or folder of pictures")
    check(known.config.numerics)
    network = known.network()
    params, loss = network.flat(known.parameters), known.config.make_loss()
    found = not all(path.is_dir() for path in paths)
    for path, within_folder in files_of(paths):
        try:
            images = _images(path, known)
        except DataError as error:
            if within_folder:
                say(f"skipped {printable(str(error))}")
            else:
                refuse(error)
            continue
        for number, row in enumerate(_rows(path, network, params, loss, images)):
            found = True
            yield path, number, row
    if not found:
        refuse(DataError(f"{paths[0]}: no file in this folder can be read; give pictures, or another folder"))


def files_of(paths: Sequence[Path]) -> Iterator[tuple[Path, bool]]:
    """Each file, and whether it is one of a folder: of that, all files at any depth in the order of names, but for
    hidden ones."""
    for path in paths:
        if not path.is_dir():
            yield path, False
            continue
        for folder, names, files in os.walk(path):
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from ((Path(folder, file), True) for file in sorted(files) if not file.startswith("."))


def _images(path: Path, known: Checkpoint) -> Images:
    """The images of a file as the network takes them."""
    with open_pictures(path) as source:
        return read_pictures(source, known.image_shape, known.resize, known.max_value)


def _rows(path: Path, network: Network, params: Vector, loss: Loss, images: Images) -> Iterator[Array]:
    """The probabilities or values (classes,) for each image."""
    network.check_memory(min(network.at_once, len(images)))
    for start, stop in chunks(len(images), network.at_once):
        rows: Array = loss.probabilities(network.logits(params, images[start:stop]).astype(np.float64))
        if not np.isfinite(rows).all():
            raise DataError(f"{path}: the network's answer is not finite: its weights are too large for this file")
        yield from rows


def _named(answer: dict[str, Any], names: Names) -> dict[str, Any]:
    """An answer of a loss with the names of its class or labels, and with all its numbers by name."""
    if "class" in answer:
        answer = {"class": answer["class"], "name": names[answer["class"]], **answer}
    if "labels" in answer:
        answer = {"labels": answer["labels"], "names": [names[label] for label in answer["labels"]], **answer}
    by_name = {key: dict(zip(names, answer[key], strict=True)) for key in ("probabilities", "values") if key in answer}
    return answer | by_name
