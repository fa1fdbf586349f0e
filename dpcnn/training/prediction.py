"""The classes, labels or values that a checkpoint's network predicts for pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.numerics import check
from dpcnn.data.pictures import open_pictures, read_pictures
from dpcnn.errors import DataError
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import find_checkpoint
from dpcnn.training.evaluation import EVALUATION_BLOCK


def predictions(checkpoint: Path, files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Predict the images of files, one file after the other.

    Yields:
        For each image its file, its number in the file, and the loss's answer: a class or labels, with the
        probabilities of all, or values.

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
                yield {"file": str(path), "image": number, **loss.answer(row)}
