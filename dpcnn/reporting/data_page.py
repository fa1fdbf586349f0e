"""The page on a data set: its counts, samples of each class, and samples that look wrong."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.files import read_bytes
from dpcnn.data.dataset import Samples
from dpcnn.data.info import TITLES, count_labels, rows
from dpcnn.data.prepare import SKIPPED
from dpcnn.data.shards import SPLITS, Manifest
from dpcnn.nn.losses import CLASSES, VALUES
from dpcnn.parallel.tree import chunks
from dpcnn.reporting.figures import new_figure, save, shades_of, short
from dpcnn.reporting.html import Section, document, facts, picture, table

COLUMNS, MOST_ROWS, MOST_PIXELS = 10, 60, 64
"""The number of samples per class, the largest number of classes, and the largest side of a sample in pixels."""

BLOCK_BYTES = 1 << 24
"""The most bytes of images that are read at once."""

LISTED, MOST_LIST = 200, 16 << 20
"""The most skipped files on the page, and the most bytes of their list."""


def data_page(folder: Path, splits: Mapping[str, Samples]) -> str:
    """The HTML page of a data set.

    Args:
        folder: of the data set.
        splits: the samples of each split.
    """
    manifest = splits["train"].manifest
    counts = [count_labels(splits[split].labels, manifest).tolist() for split in SPLITS]
    skipped = _skipped(folder)
    with TemporaryDirectory(prefix="dpcnn-data-") as work:
        draw_samples(splits["train"], Path(work) / "samples.svg")
        sections = [
            Section("Samples", table([TITLES[manifest.targets], *SPLITS], rows(manifest, counts), names=1)),
            Section("Training samples of each class", picture(Path(work), "samples", "some samples of each class")),
            Section("Doubtful samples", facts(doubtful(splits))),
            Section("Files that could not be read", table(["file and reason"], skipped, names=1) if skipped else ""),
        ]
    return document(manifest.name, summary(manifest), sections)


def summary(manifest: Manifest) -> dict[str, Any]:
    """The facts at the top of the page."""
    moments = {"mean": manifest.mean, "deviation": manifest.deviation}
    of_channels = {f"{name} per channel": ", ".join(f"{each:.2f}" for each in moments[name]) for name in moments}
    shape = " x ".join(map(str, manifest.image_shape))
    return {"images": shape, **(of_channels if manifest.mean else {}), **manifest.source, "sha256": manifest.checksum}


def draw_samples(samples: Samples, stem: Path) -> str:
    """Draw a row of samples for each class or label, or from the lowest to the highest of each value.

    Returns:
        A line with the names of the files.
    """
    manifest = samples.manifest
    lines = [(name, spread(_of(n, samples))) for n, name in enumerate(manifest.class_names[:MOST_ROWS])]
    H, W, C = manifest.image_shape
    step = -(-max(H, W) // MOST_PIXELS)
    h, w, gap = -(-H // step), -(-W // step), 2
    whole = np.full((len(lines) * (h + gap), COLUMNS * (w + gap), C), 255, np.uint8)
    for row, (_, indices) in enumerate(lines):
        for column, image in enumerate(samples.take(indices)[0]):
            top, left = row * (h + gap), column * (w + gap)
            whole[top : top + h, left : left + w] = image[::step, ::step]
    figure = new_figure(width=6, height=0.2 + 4.9 * whole.shape[0] / whole.shape[1])
    axes = figure.subplots()
    axes.imshow(whole if C in (3, 4) else whole.mean(axis=-1), cmap=shades_of(manifest.resize), vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([row * (h + gap) + h / 2 for row in range(len(lines))], [short(name) for name, _ in lines])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return save(figure, stem, "samples")


def _of(number: int, samples: Samples) -> Array:
    """The indices of the samples of a class or with a label; of all samples in the order of a value."""
    labels, targets = samples.labels, samples.manifest.targets
    if targets == VALUES:
        return np.argsort(labels[:, number], kind="stable")
    return np.flatnonzero(labels == number if targets == CLASSES else labels[:, number])


def spread(indices: Array) -> Array:
    """At most :data:`COLUMNS` of some indices, evenly spaced, the first and the last among them."""
    if len(indices) <= COLUMNS:
        return indices
    chosen: Array = indices[np.linspace(0, len(indices) - 1, COLUMNS).astype(int)]
    return chosen


def doubtful(splits: Mapping[str, Samples]) -> dict[str, str]:
    """How many samples look wrong, and the first of them."""
    digests, plain = {}, {}
    for split, samples in splits.items():
        digests[split], plain[split] = _digests(samples)
    train, test = digests["train"], digests["test"]
    _, first, inverse = np.unique(train, return_index=True, return_inverse=True)
    labels = splits["train"].labels.reshape(len(train), -1)
    found = {
        "training images of one colour": np.flatnonzero(plain["train"]),
        "test images of one colour": np.flatnonzero(plain["test"]),
        "training images that occur before": np.flatnonzero(first[inverse] != np.arange(len(train))),
        "training images with another label than an equal image before": np.flatnonzero(
            (labels != labels[first[inverse]]).any(axis=1)
        ),
        "test images that are also training images": np.flatnonzero(np.isin(test, train)),
    }
    return {name: _listed(indices) for name, indices in found.items()}


def _digests(samples: Samples) -> tuple[Array, Array]:
    """A digest (n,) of the bytes of each image; and whether all its pixels are equal, (n,) bool."""
    n = len(samples.labels)
    found, plain = np.empty(n, "S32"), np.empty(n, bool)
    for start, stop in chunks(n, max(1, BLOCK_BYTES // samples.manifest.image_bytes)):
        images = samples.take(np.arange(start, stop))[0]
        found[start:stop] = [hashlib.blake2b(image.data, digest_size=16).hexdigest() for image in images]
        plain[start:stop] = (images == images[:, :1, :1]).all(axis=(1, 2, 3))
    return found, plain


def _listed(indices: Array) -> str:
    """How many there are, and the first of them."""
    shown = ", ".join(map(str, indices[:COLUMNS].tolist()))
    return f"{len(indices):,}" + (f": {shown}{', ..' if len(indices) > COLUMNS else ''}" if len(indices) else "")


def _skipped(folder: Path) -> list[list[str]]:
    """The first lines of the list of skipped files, a row for each; none if there is no list."""
    path = folder / SKIPPED
    lines = read_bytes(path, MOST_LIST).decode(errors="replace").splitlines() if path.exists() else []
    more = [f"and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return [[line] for line in [*lines[:LISTED], *more]]
