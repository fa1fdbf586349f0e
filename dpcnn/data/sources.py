"""Sources of data sets: folders of IDX, CSV or NPY files, NPZ files, and HDF5 files. All are untrusted."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import SHUFFLE, permutation
from dpcnn.data.cifar import cifar_files, read_cifar
from dpcnn.data.classes import Names, number_labels, numbered
from dpcnn.data.formats import read_csv, read_idx
from dpcnn.data.hdf5 import SIGNATURE, read_hdf5
from dpcnn.data.holdout import TEST, stratified
from dpcnn.data.inputs import Input, open_input
from dpcnn.data.layout import most_rows
from dpcnn.data.npz import ZIP, read_headers, read_npy, read_or_keep
from dpcnn.data.shards import MOST_SIDE, SPLITS, Images
from dpcnn.data.source_options import TEST_PART, SourceOptions
from dpcnn.data.targets import targets_of
from dpcnn.errors import ConfigError, DataError, printable
from dpcnn.nn.losses import CLASSES
from dpcnn.parallel.tree import chunks

BLOCK_CHUNKS = 8
"""Chunks of a shard whose images are in memory at once."""

CHANNELS = (1, 3, 4)
"""Numbers of channels by which the layout of an array is recognised."""


@dataclass
class Source:
    """The images and labels of a source.

    Attributes:
        images: for each split, uint8 (n, H, W, C), or (n, C, H, W) with ``channels_first``; arrays of numbers index it.
        labels: for each split, of the type of :attr:`dpcnn.data.shards.Manifest.labels_type`.
        class_names: the name of each class, label or value.
        resize: how a picture becomes an image of this set, see :data:`dpcnn.data.shards.RESIZE`.
        origin: the names of the source and their values, for people.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
        channels_first: whether the channels come before height and width in ``images``.
        orders: for each split, the indices (n,) of its samples in their order; missing: the order of the source.
        faults: the samples that this rank has skipped, each with the reason.
    """

    images: dict[str, Any]
    labels: dict[str, Array]
    class_names: Names
    resize: str
    origin: dict[str, str]
    targets: str = CLASSES
    channels_first: bool = False
    orders: dict[str, Array] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    skips: ClassVar = False
    """Whether :meth:`take` may skip samples."""

    @property
    def image_shape(self) -> Shape:
        """(H, W, C)."""
        shape: Shape = self.images["train"].shape[1:]
        return (*shape[1:], shape[0]) if self.channels_first else shape

    def with_test(self, path: Path, options: SourceOptions) -> "Source":
        """This source with test samples: drawn from the training samples if it has none of its own.

        Raises:
            ConfigError: it has some, and more are asked for; or none would be left for training.
        """
        if "test" not in self.labels:
            self._draw_test(TEST_PART if options.test is None else options.test, options.seed)
        elif options.test is not None:
            raise ConfigError(f"--test: {path} has test samples of its own; drop the option")
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
        for first, end in chunks(stop - start, BLOCK_CHUNKS * most_rows(math.prod(self.image_shape))):
            numbers = np.arange(start + first, start + end)
            indices = self.orders[split][numbers] if split in self.orders else numbers
            yield self.take(split, indices)

    def take(self, split: str, indices: Array) -> tuple[Images, Array]:
        """The images (n, H, W, C) and labels (n,) or (n, K) with these indices in the source's own order."""
        images = self.images[split][indices]
        return np.moveaxis(images, 1, -1) if self.channels_first else images, self.labels[split][indices]


IDX_NAMES = {"train": "train", "test": "t10k"}
CSV_NAMES = {"train": "mnist_train.csv", "test": "mnist_test.csv"}
KEYS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
CSV_FOLDER = f"a folder with {' and '.join(CSV_NAMES.values())}"
NPZ_FILE = "an NPZ file with x_train and y_train, and perhaps x_test and y_test"
Pairs = dict[str, tuple[Any, Array]]
"""For each split, images and labels as they are in the source."""


def read_arrays_source(path: Path, options: SourceOptions, names: Sequence[str] = ()) -> Source:
    """Read a folder of IDX, CSV, NPY or CIFAR files, an NPZ file, or an HDF5 file.

    Args:
        names: of the arrays in an HDF5 file: images and labels, and perhaps images and labels of test samples.

    Raises:
        DataError: nothing known is there, or what is there is damaged.
        ConfigError: the options do not fit it.
    """
    if options.size or options.strict:
        raise ConfigError(f"--size and --strict are for pictures, but {path} holds arrays; drop the options")
    pairs, origin = _read_hdf5(path, names) if names else _read_npz(path) if path.is_file() else _read_folder(path)
    images = {split: _checked(path, *pair) for split, pair in pairs.items()}
    labels, names = _labels(path, {split: pair[1] for split, pair in pairs.items()}, options)
    first = options.layout == "chw"
    source = Source(images, labels, names, options.resize, origin, options.targets, channels_first=first)
    shapes = {split: each.shape[1:] for split, each in images.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"{path}: training images are {shapes['train']}, test images {shapes['test']}; expected the same shape"
        )
    if options.layout is None:
        _check_layout(path, shapes["train"])
    return source.with_test(path, options)


def _labels(path: Path, labels: dict[str, Array], options: SourceOptions) -> tuple[dict[str, Array], Names]:
    """The labels of each split as shards store them, and the name of each class, or of each label or value."""
    if options.targets == CLASSES:
        return number_labels(path, labels, options.names)
    stored = {split: targets_of(path, each, options.targets) for split, each in labels.items()}
    columns = {each.shape[1] for each in stored.values()}
    if len(columns) > 1:
        raise DataError(f"{path}: the training and test labels have another number of columns; give both the same")
    count = columns.pop()
    if options.names and len(options.names) != count:
        raise ConfigError(f"--names: {len(options.names)} names for the {count} columns of labels; give {count} names")
    return stored, options.names or numbered(count)


def _check_layout(path: Path, shape: Shape) -> None:
    """Refuse images (a, b, c) that look like (C, H, W)."""
    if shape[0] in CHANNELS and shape[2] not in CHANNELS:
        raise DataError(
            f"{path}: images {shape} look like (channels, height, width); give --layout chw, or --layout hwc if they "
            "are (height, width, channels)"
        )


def _read_folder(path: Path) -> tuple[Pairs, dict[str, str]]:
    for names, read in KINDS:
        files = {split: found for split in SPLITS if (found := names(path, split))}
        if "train" in files:
            return _read_files(files, read)
    raise DataError(
        f"{path}: expected a folder of pictures for each class, or train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        f"t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (.gz or not), {' and '.join(CSV_NAMES.values())}, or "
        "x_train.npy and y_train.npy, or the files of CIFAR in binary form"
    )


def _read_files(
    files: dict[str, list[Path]], read: Callable[[Sequence[Input]], tuple[Any, Array]]
) -> tuple[Pairs, dict[str, str]]:
    pairs: Pairs = {}
    origin: dict[str, str] = {}
    for split, paths in files.items():
        with ExitStack() as opened:
            inputs = [opened.enter_context(open_input(path)) for path in paths]
            origin |= {each.path.name: f"sha256 {each.sha256()}" for each in inputs}
            pairs[split] = read(inputs)
    return pairs, origin


def _idx_files(folder: Path, split: str) -> list[Path]:
    stems = [f"{IDX_NAMES[split]}-images-idx3-ubyte", f"{IDX_NAMES[split]}-labels-idx1-ubyte"]
    paths = [_first(folder / f"{stem}.gz", folder / stem) for stem in stems]
    return [path for path in paths if path] if all(paths) else []


def _csv_files(folder: Path, split: str) -> list[Path]:
    name = CSV_NAMES[split]
    path = _first(folder / name, folder / f"{name}.gz")
    return [path] if path else []


def _npy_files(folder: Path, split: str) -> list[Path]:
    found = [folder / f"{key}.npy" for key in KEYS[split]]
    return found if all(path.is_file() for path in found) else []


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_idx_pair(files: Sequence[Input]) -> tuple[Images, Images]:
    images, labels = map(read_idx, files)
    return images, labels


def _read_csv(files: Sequence[Input]) -> tuple[Images, Images]:
    return read_csv(files[0])


def _read_npy_pair(files: Sequence[Input]) -> tuple[Any, Array]:
    images, labels = map(read_npy, files)
    return images, labels


KINDS: list[tuple[Callable[[Path, str], list[Path]], Callable[[Sequence[Input]], tuple[Any, Array]]]]
KINDS = [(_idx_files, _read_idx_pair), (_csv_files, _read_csv), (_npy_files, _read_npy_pair), (cifar_files, read_cifar)]
"""For each kind of folder, the functions that find and read the files of a split."""


def is_folder_of_arrays(folder: Path) -> bool:
    """Whether the training samples of one of :data:`KINDS` are in a folder."""
    return any(names(folder, "train") for names, _ in KINDS)


def _read_npz(path: Path) -> tuple[Pairs, dict[str, str]]:
    """Read an NPZ file with the keys of Keras."""
    with open_input(path) as file:
        if file.head(len(SIGNATURE)) == SIGNATURE:
            raise DataError(f"{path}: give the names of its arrays, as in {path}:images,labels")
        if file.head(2) != ZIP:
            raise DataError(f"{path}: not an NPZ file; expected {NPZ_FILE}, or a folder of IDX, CSV or picture files")
        origin = {printable(path.name)[:255]: f"sha256 {file.sha256()}"}
        headers = read_headers(file)
        wanted = {split: keys for split, keys in KEYS.items() if split == "train" or set(keys) & set(headers)}
        missing = [key for keys in wanted.values() for key in keys if key not in headers]
        if missing:
            raise DataError(f"{path}: holds no {missing[0]}; expected {NPZ_FILE}")
        arrays = {key: headers[key] for keys in wanted.values() for key in keys}
        found = dict(zip(arrays, read_or_keep(file, arrays.values()), strict=True))
    return {split: (found[x], found[y]) for split, (x, y) in wanted.items()}, origin


def _read_hdf5(path: Path, names: Sequence[str]) -> tuple[Pairs, dict[str, str]]:
    """Read the arrays with these names of an HDF5 file."""
    if len(names) not in (2, 4):
        raise DataError(
            f"{path}: {len(names)} names of arrays; expected two, as in {path}:images,labels, or four, the last two of "
            "test samples"
        )
    with open_input(path) as file:
        origin = {printable(path.name)[:255]: f"sha256 {file.sha256()}", "arrays": printable(",".join(names))[:255]}
        arrays = read_hdf5(file, names)
    return dict(zip(SPLITS, zip(arrays[::2], arrays[1::2], strict=True), strict=False)), origin


def _checked(path: Path, images: Any, labels: Array) -> Any:
    """The images as (n, H, W, C) of bytes, one for each label."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not labels.ndim or len(images) != len(labels):
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape} do not match; "
            "expected images (n, H, W) or (n, H, W, C), and labels (n,)"
        )
    if not images.shape[0] or min(images.shape) < 1 or max(images.shape[1:]) > MOST_SIDE:
        raise DataError(f"{path}: images {images.shape}: expected at least one, with sides up to {MOST_SIDE:,}")
    if images.dtype != np.uint8:
        scale = "multiply by 255 and convert" if images.dtype.kind == "f" else "convert them"
        raise DataError(f"{path}: expected uint8 images 0..255 (n, H, W, C), not {images.dtype}; {scale}")
    return images
