"""The images and labels of a source of a new data set."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import SHUFFLE, permutation
from dpcnn.data.classes import Names
from dpcnn.data.holdout import TEST, stratified
from dpcnn.data.layout import most_rows
from dpcnn.data.pixels import BYTES, check_values, stored_type
from dpcnn.data.shards import SPLITS, Images
from dpcnn.data.source_options import TEST_PART, SourceOptions
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import CLASSES
from dpcnn.parallel.tree import chunks

BLOCK_CHUNKS = 8
"""Chunks of a shard whose images are in memory at once."""


@dataclass
class Source:
    """The images and labels of a source.

    Attributes:
        images: for each split, (n, H, W, C), or (n, C, H, W) with ``channels_first``; arrays of numbers index it.
        labels: for each split, of the type of :attr:`dpcnn.data.shards.Manifest.labels_type`.
        class_names: the name of each class, label or value.
        resize: how a picture becomes an image of this set, see :data:`dpcnn.data.shards.RESIZE`.
        origin: the names of the source and their values, for people.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
        channels_first: whether the channels come before height and width in ``images``.
        pixels: the type of the images' values, one of :data:`dpcnn.data.pixels.WHITE`.
        max_value: the value of white; None for uint8.
        orders: for each split, the indices (n,) of its samples in their order; missing: the order of the source.
        faults: the samples that this rank has skipped, each with the reason.
        remarks: lines for people about parts of the source that are left out.
        taken: the names of the files of the samples that this rank has taken for a shard, in order.
    """

    images: dict[str, Any]
    labels: dict[str, Array]
    class_names: Names
    resize: str
    origin: dict[str, str]
    targets: str = CLASSES
    channels_first: bool = False
    pixels: str = BYTES
    max_value: float | None = None
    orders: dict[str, Array] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    skips: ClassVar = False
    """Whether :meth:`take` may skip samples."""

    @property
    def image_shape(self) -> Shape:
        """(H, W, C)."""
        shape: Shape = self.images["train"].shape[1:]
        return (*shape[1:], shape[0]) if self.channels_first else shape

    @property
    def block(self) -> int:
        """The number of images that are in memory at once."""
        return BLOCK_CHUNKS * most_rows(math.prod(self.image_shape) * stored_type(self.pixels).itemsize)

    def with_test(self, path: Path, options: SourceOptions) -> "Source":
        """This source with test samples: drawn from the training samples if it has none of its own.

        Raises:
            ConfigError: it has some, and more are asked for; or none would be left for training.
        """
        if "test" not in self.labels:
            self._draw_test(TEST_PART if options.test is None else options.test, options.seed or 0)
        elif options.test is not None:
            raise ConfigError(f"--test: {path} has test samples of its own; drop the option")
        elif options.seed is not None:
            raise ConfigError(f"--seed: {path} has test samples of its own, so none are drawn; drop the option")
        return self

    def _draw_test(self, amount: float, seed: int) -> None:
        """Take the test samples from the training samples: from each class in proportion to its size, by the seed."""
        labels = self.labels["train"]
        strata = labels if self.targets == CLASSES else np.zeros(len(labels), np.uint8)
        count = int(amount) if amount >= 1 else round(amount * len(labels))
        if not 0 < count < len(labels):
            raise ConfigError(f"--test {amount:g}: {count:,} of {len(labels):,} samples; expected some, and not all")
        of_test = np.zeros(len(labels), bool)
        of_test[stratified(strata, count, seed, TEST)] = True
        self.images["test"], self.labels["test"] = self.images["train"], labels
        self.orders = {"train": np.flatnonzero(~of_test), "test": np.flatnonzero(of_test)}
        of_each = " from each class" if self.targets == CLASSES else ""
        self.origin["test samples"] = f"{count}, drawn{of_each} by seed {seed}"

    def shuffle(self, seed: int) -> None:
        """Shuffle the samples of each split; the order depends only on the seed."""
        for number, split in enumerate(SPLITS):
            samples = self.samples(split)
            order = self.orders.get(split, np.arange(samples))
            self.orders[split] = order[permutation(seed, number, samples, SHUFFLE)]
        self.origin["order"] = f"shuffled by seed {seed}"

    def samples(self, split: str) -> int:
        """The number of samples of a split."""
        return len(self.orders.get(split, self.labels[split]))

    def blocks(self, split: str, start: int, stop: int) -> Iterator[tuple[Images, Array]]:
        """The samples ``start .. stop - 1`` of a split, in order: images (n, H, W, C), labels (n,) or (n, K)."""
        for first, end in chunks(stop - start, self.block):
            numbers = np.arange(start + first, start + end)
            indices = self.orders[split][numbers] if split in self.orders else numbers
            yield self.take(split, indices)

    def take(self, split: str, indices: Array) -> tuple[Images, Array]:
        """The images (n, H, W, C) and labels (n,) or (n, K) with these indices in the source's own order.

        Raises:
            DataError: a value is not from black to white.
        """
        images = self.images[split][indices].astype(stored_type(self.pixels), copy=False)
        check_values(f"{split} images", images, self.max_value)
        return np.moveaxis(images, 1, -1) if self.channels_first else images, self.labels[split][indices]
