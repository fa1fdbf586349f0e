"""The content of a data set, with every byte of it verified."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Array
from dpcnn.base.text import text
from dpcnn.data.dataset import check_labels, find_data
from dpcnn.data.layout import labels_of, read_layout
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import SPLITS, Manifest, Shard, read_manifest
from dpcnn.data.verified import Verification
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES
from dpcnn.parallel.comm import SerialComm

Counts = NDArray[np.int64]
TITLES = {CLASSES: "class", MULTILABEL: "label", VALUES: "not 0"}
"""The meaning of the counts, by the kind of the labels."""


def info(comm: SerialComm, name: str) -> list[str]:
    """Verify all checksums, labels and shapes of a data set, and describe it; each rank checks some of the shards.

    Args:
        name: a name under data/, or a folder.
    """
    with comm.fail_together():
        folder = find_data(name)
        manifest = read_manifest(folder)
    jobs = [(split, shard) for split in SPLITS for shard in manifest.splits[split]]
    verification = Verification(comm.node(), folder, manifest, again=True)
    counts = np.zeros((len(SPLITS), manifest.classes), np.int64)
    with comm.fail_together():
        for split, shard in jobs[comm.rank :: comm.size]:
            counts[SPLITS.index(split)] += _count(folder, shard, manifest, verification)
    verification.save()
    comm.allreduce(counts)
    return info_lines(folder, manifest, counts.tolist())


def _count(folder: Path, shard: Shard, manifest: Manifest, verification: Verification) -> Counts:
    """The :func:`count_labels` of a shard, which is verified."""
    with ShardFile(folder, shard) as file:
        verification.check(file)
        labels = labels_of(file, read_layout(file, manifest), manifest)
    check_labels(file.path, labels, manifest)
    return count_labels(labels, manifest)


def count_split(folder: Path, manifest: Manifest, split: str) -> Counts:
    """The :func:`count_labels` of a split, whose shards this process has just written."""
    counts = np.zeros(manifest.classes, np.int64)
    for shard in manifest.splits[split]:
        with ShardFile(folder, shard) as file:
            counts += count_labels(labels_of(file, read_layout(file, manifest), manifest), manifest)
    return counts


def count_labels(labels: Array, manifest: Manifest) -> Counts:
    """The number of samples of each class, (classes,); of each label or value, those that are not 0."""
    if manifest.targets == CLASSES:
        return np.bincount(labels, minlength=manifest.classes)
    present: Counts = (labels != 0).sum(axis=0)
    return present


def rows(manifest: Manifest, counts: list[list[int]]) -> list[list[str]]:
    """A row for each class, label or value with its samples by split, then all samples, and the number of shards."""
    by_class = [[name, *map(str, each)] for name, *each in zip(manifest.class_names, *counts, strict=True)]
    samples = [str(manifest.samples(split)) for split in SPLITS]
    shards = [str(len(manifest.splits[split])) for split in SPLITS]
    return [*by_class, ["all", *samples], ["shards", *shards]]


def info_lines(folder: Path, manifest: Manifest, counts: list[list[int]]) -> list[str]:
    """The description of a verified data set; ``counts``: samples by split and class."""
    s = "s" * (manifest.classes > 1)
    kinds = {CLASSES: "classes", MULTILABEL: f"label{s} per sample", VALUES: f"value{s} per sample"}
    pixels = "" if manifest.max_value is None else f" of {manifest.pixels}, white is {manifest.max_value:g}"
    lines = [
        f"{folder}: {manifest.name}, images {' x '.join(map(str, manifest.image_shape))}{pixels}, "
        f"{manifest.classes} {kinds[manifest.targets]}, {'compressed' if manifest.compressed else 'contiguous'}",
        *text((TITLES[manifest.targets], *SPLITS), rows(manifest, counts)).splitlines(),
    ]
    lines += [f"source: {name} {value}" for name, value in manifest.source.items()]
    lines.append(f"every shard verified; data {manifest.checksum}")
    return lines
