"""The classes that a checkpoint's network predicts for pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.numerics import check
from dpcnn.data.classes import Names
from dpcnn.data.pictures import open_pictures, read_pictures
from dpcnn.errors import DataError
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import find_checkpoint
from dpcnn.training.evaluation import EVALUATION_BLOCK


def predictions(checkpoint: Path, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predict the images of files, one file after the other.

    Yields:
        For each image its "file", its number in the file as "image", its "class" and the "name" of that, and the
        "probabilities" by the name of each class.

    Raises:
        CheckpointError, DataError, ConfigError: the checkpoint or a file can't be used.
    """
    known = read(find_checkpoint(checkpoint))
    check(known.config.numerics)
    network = known.network()
    params, loss = network.flat(known.parameters), known.config.make_loss()
    for path in files:
        with open_pictures(path) as source:
            images = read_pictures(source, known.image_shape)
        network.check_memory(min(EVALUATION_BLOCK, len(images)))
        for start, stop in chunks(len(images), EVALUATION_BLOCK):
            rows: Array = loss.probabilities(network.logits(params, images[start:stop]).astype(np.float64))
            if not np.isfinite(rows).all():
                raise DataError(f"{path}: the network's answer is not finite: its weights are too large for this file")
            for number, row in enumerate(rows, start):
                yield {"file": str(path), "image": number, **_answer(row, known.class_names)}


def _answer(row: Array, names: Names) -> dict[str, Any]:
    """The class of an image with the probabilities (classes,) in ``row``."""
    best = int(row.argmax())
    return {"class": best, "name": names[best], "probabilities": dict(zip(names, row.tolist(), strict=True))}
