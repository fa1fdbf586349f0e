"""The content of a data set, with every byte of it verified."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpcnn.data.dataset import check_labels, find_data
from dpcnn.data.layout import read_labels, read_layout
from dpcnn.data.shard_files import ShardFile
from dpcnn.data.shards import SPLITS, Manifest, Shard, read_manifest
from dpcnn.nn.losses import CLASSES, MULTILABEL, VALUES
from dpcnn.parallel.comm import SerialComm

Counts = NDArray[np.int64]


def info(comm: SerialComm, name: str) -> list[str]:
    """Verify all checksums, labels and shapes of a data set, and describe it; each rank checks some of the shards.

    Args:
        name: a name under data/, or a folder.
    """
    with comm.fail_together():
        folder = find_data(name)
        manifest = read_manifest(folder)
    jobs = [(split, shard) for split in SPLITS for shard in manifest.splits[split]]
    counts = np.zeros((len(SPLITS), manifest.classes), np.int64)
    with comm.fail_together():
        for split, shard in jobs[comm.rank :: comm.size]:
            counts[SPLITS.index(split)] += _count(folder, shard, manifest)
    comm.allreduce(counts)
    return info_lines(folder, manifest, counts.tolist())


def _count(folder: Path, shard: Shard, manifest: Manifest) -> Counts:
    """The number of samples of each class in a shard that is verified, (classes,); of each label or value, those that
    are not 0."""
    with ShardFile(folder, shard) as file:
        file.verify()
        labels = np.empty(manifest.labels_shape(shard.samples), manifest.labels_type)
        read_labels(file, read_layout(file, shard, manifest), labels)
    check_labels(file.path, labels, manifest)
    if manifest.targets == CLASSES:
        return np.bincount(labels, minlength=manifest.classes)
    present: Counts = (labels != 0).sum(axis=0)
    return present


def info_lines(folder: Path, manifest: Manifest, counts: list[list[int]]) -> list[str]:
    """The description of a verified data set; ``counts``: samples by split and class."""
    s = "s" * (manifest.classes > 1)
    kinds = {CLASSES: "classes", MULTILABEL: f"label{s} per sample", VALUES: f"value{s} per sample"}
    titles = {CLASSES: "class   ", MULTILABEL: "label   ", VALUES: "not 0   "}
    lines = [
        f"{folder}: {manifest.name}, images {' x '.join(map(str, manifest.image_shape))}, "
        f"{manifest.classes} {kinds[manifest.targets]}, {'compressed' if manifest.compressed else 'contiguous'}",
        titles[manifest.targets] + "".join(f"{number:>8}" for number in range(manifest.classes)) + "     all  shards",
    ]
    for split, row in zip(SPLITS, counts, strict=True):
        samples, shards = manifest.samples(split), len(manifest.splits[split])
        lines.append(f"{split:<8}" + "".join(f"{count:>8}" for count in row) + f"{samples:>8}{shards:>8}")
    lines += [f"source: {name} {text}" for name, text in manifest.source.items()]
    lines.append(f"every shard verified; data {manifest.checksum}")
    return lines
