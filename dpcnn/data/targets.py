"""The kinds of targets: classes, several labels per sample, or values."""

from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.fields import FieldError, Table
from dpcnn.errors import DataError
from dpcnn.nn.losses import CLASSES, MULTILABEL, TARGETS, VALUES

LABELS: dict[str, np.dtype[Any]] = {MULTILABEL: np.dtype("u1"), VALUES: np.dtype("<f4")}
"""The type of the labels in shards, for each kind of targets (:data:`dpcnn.nn.losses.TARGETS`) but classes."""

MOST_COLUMNS = 256


def parse_targets(table: Table) -> str:
    """The kind of targets of a manifest; those of older versions have classes and do not say so.

    Raises:
        FieldError: it is not one of :data:`dpcnn.nn.losses.TARGETS`.
    """
    targets = table.name("targets") if "targets" in table else CLASSES
    if targets not in TARGETS:
        raise FieldError(f"targets: expected one of {', '.join(TARGETS)}, not {targets[:60]!r}")
    return targets


def targets_of(path: Path, labels: Array, targets: str) -> Array:
    """The labels of a source as shards store them: (n, K), uint8 of zeros and ones, or float32 values.

    Args:
        path: the source, for messages.
        labels: (n, K) numbers; of values also (n,).
        targets: "multilabel" or "values".

    Raises:
        DataError: the labels are of another kind.
    """
    if targets != MULTILABEL and labels.ndim == 1:
        labels = labels[:, None]
    if labels.ndim != 2 or not 1 <= labels.shape[1] <= MOST_COLUMNS or labels.dtype.kind not in "buif":
        advice = "; give a row for each image: labels.reshape(len(labels), -1)" if labels.ndim > 2 else ""
        raise DataError(
            f"{path}: labels {labels.dtype} {labels.shape}: expected numbers (n, K), K from 1 to {MOST_COLUMNS}{advice}"
        )
    if targets == MULTILABEL:
        fine, expected = (labels == 0) | (labels == 1), "zeros and ones"
    else:
        fine, expected = np.abs(labels.astype(np.float64)) <= np.finfo(np.float32).max, "finite numbers of float32"
    if not fine.all():
        row = int(np.argwhere(~fine)[0][0])
        raise DataError(f"{path}: the labels of sample {row} are {labels[row].tolist()[:9]}: expected {expected}")
    return np.ascontiguousarray(labels.astype(LABELS[targets]))
