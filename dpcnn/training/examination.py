"""The examination of a checkpoint: its network's answers for the samples of a split."""

import sys
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.numerics import check
from dpcnn.config import Config, from_dict
from dpcnn.data.classes import Names, numbered
from dpcnn.data.dataset import Samples, find_data, find_data_of, load
from dpcnn.data.holdout import hold_out
from dpcnn.data.shards import Manifest
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn.losses import CLASSES, VALUES, Loss
from dpcnn.nn.metrics import Answers
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.shared import share_or_part
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint
from dpcnn.training.evaluation import evaluate, measure

MOST_CONFUSED = 1000
"""The most classes of a confusion matrix."""


@dataclass(frozen=True)
class Examination:
    """The answers of a checkpoint's network for the samples of a split.

    Attributes:
        folder: the data set's folder.
        samples: the samples of the split's files.
        indices: (n,) the indices of the samples that the network answered.
        answers: the answers, in the order of ``indices``.
        confusion: (classes, classes) counts: by row the true class, by column the predicted one; None if the samples
            have no single class, or more than :data:`MOST_CONFUSED` classes.
        class_names: the name of each class, label or value.
        resize: how a picture becomes an image for the network, see :data:`dpcnn.data.shards.RESIZE`.
        results: the figures, ready for JSON; only rank 0 has the checkpoint's path and step in them.
    """

    folder: Path
    samples: Samples
    indices: Array
    answers: Answers
    confusion: Array | None
    class_names: Names
    resize: str
    results: dict[str, Any]


def read_on_rank_0(comm: SerialComm, path: Path) -> tuple[Path, Checkpoint | None]:
    """Read the checkpoint at a path, or the best checkpoint of the run's folder at that path.

    Returns:
        The checkpoint's path; and on rank 0 the checkpoint, on the other ranks None.

    Raises:
        CheckpointError: on every rank.
    """
    with comm.fail_together():
        path = find_checkpoint(path)
        return path, read(path) if comm.rank == 0 else None


def examine(
    comm: SerialComm,
    path: Path,
    checkpoint: Checkpoint | None,
    split: str,
    data: str | None = None,
    verify: bool = False,
) -> Examination:
    """Evaluate a checkpoint's network on a split; each rank of ``comm`` computes a part of the answers.

    Args:
        path: the checkpoint's path, for the results and for messages.
        checkpoint: the checkpoint on rank 0, None on the other ranks.
        split: "test" or "validation".
        data: the name or folder of a data set to use in place of the checkpoint's.
        verify: whether to verify every data shard.

    Raises:
        ConfigError, CheckpointError, DataError: on every rank.
    """
    state = comm.broadcast_obj(checkpoint and [checkpoint.config.as_dict(), checkpoint.class_names, checkpoint.resize])
    config, class_names, resize = from_dict(state[0]), tuple(state[1]), state[2]
    with comm.fail_together():
        folder = find_data(data) if data else find_data_of(path, config.data)
    samples = _load(comm, folder, split, verify)
    indices = _indices(samples, config, split)
    with comm.fail_together():
        check(config.numerics)
        if not len(indices):
            raise ConfigError(f"{path}: its run held no samples back for validation; give --split test")
        loss = config.make_loss()
        loss.check_data(samples.manifest.targets, samples.manifest.classes, samples.manifest.name)
        check_classes(path, class_names, samples.manifest)
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
        network.check_memory(min(network.at_once, len(indices)), comm.node().size)
        params = network.flat(checkpoint.parameters) if checkpoint else np.empty(network.size, np.float32)
    comm.broadcast(params)
    started = time.perf_counter()
    answers = evaluate(comm, network, params, samples, indices, loss)
    if not np.isfinite(answers.losses).all():
        raise CheckpointError(f"{path}: the loss is not finite: the weights are too large for these images")
    confusion = answers.confusion(network.classes) if has_confusion(loss, network.classes) else None
    source = {"checkpoint": str(path), "step": checkpoint.progress.step} if checkpoint else {}
    source |= {"data": samples.manifest.name, "split": split}
    seconds = round(time.perf_counter() - started, 3)
    figures = {**source, **_figures(answers, loss, confusion, class_names), "seconds": seconds}
    return Examination(folder, samples, indices, answers, confusion, class_names, resize, figures)


def check_classes(path: Path, names: Names, data: Manifest) -> None:
    """Refuse data whose classes have other names than those of a checkpoint; numbers go with any names.

    Raises:
        ConfigError: the names differ.
    """
    known = [each for each in (names, data.class_names) if each != numbered(len(each))]
    if len(known) == 2 and known[0] != known[1]:
        one, other = next((a, b) for a, b in zip_longest(*known, fillvalue="missing") if a != b)
        raise ConfigError(
            f"{path}: its class {one!r} is {other!r} in {data.name}; prepare the data with the --names of the training"
        )


def _load(comm: SerialComm, folder: Path, split: str, verify: bool) -> Samples:
    """The samples of the files that contain a split; rank 0 prints a warning if the ranks can't share memory."""
    warning = share_or_part(comm)
    if warning and comm.rank == 0:
        print(warning, file=sys.stderr)
    return load(folder, "test" if split == "test" else "train", comm, verify)


def _indices(samples: Samples, config: Config, split: str) -> Array:
    """The indices of a split's samples: all of them, or those that the run held back for validation."""
    if split == "test":
        return np.arange(len(samples))
    return hold_out(samples.labels, config.validation, config.holdout, config.seed).validation


def has_confusion(loss: Loss, classes: int) -> bool:
    """Whether there is a confusion matrix: each sample has one class, of at most :data:`MOST_CONFUSED`."""
    return loss.targets == CLASSES and classes <= MOST_CONFUSED


def _figures(answers: Answers, loss: Loss, confusion: Array | None, names: Names) -> dict[str, Any]:
    """The metrics of a loss; for samples with classes or labels also those of each class."""
    figures: dict[str, Any] = {"samples": answers.count}
    if "accuracy" in loss.metrics:
        figures["correct"] = int(answers.correct.sum())
    figures |= measure(answers, loss)
    if loss.targets != VALUES:
        right, predicted, samples = (np.pad(each, (0, len(names) - len(each))) for each in answers.class_counts)
        figures["classes"] = scores(right, predicted, samples, names)
    if confusion is not None:
        figures["confusion"] = confusion.tolist()
    return figures


def scores(right: Array, predicted: Array, of_class: Array, names: Names) -> list[dict[str, Any]]:
    """The number of samples, the precision and the recall of each class, or of each label.

    Args:
        right, predicted, of_class: for each class the numbers of right predictions, of all predictions and of samples.
        names: of the classes or labels.

    Returns:
        A dictionary per class. Precision is None for a class that was never predicted, and recall is None for a
        class without samples.
    """
    return [
        {
            "class": number,
            "name": names[number],
            "samples": int(of_class[number]),
            "precision": right[number] / predicted[number] if predicted[number] else None,
            "recall": right[number] / of_class[number] if of_class[number] else None,
        }
        for number in range(len(of_class))
    ]
