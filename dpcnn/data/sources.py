"""Sources of data sets: folders of IDX or CSV files, and NPZ files. All are untrusted."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Array
from dpcnn.base.rng import SHUFFLE, permutation
from dpcnn.data.formats import read_csv, read_idx
from dpcnn.data.inputs import Input, open_input
from dpcnn.data.npz import ZIP, read_arrays, read_headers
from dpcnn.data.shards import MOST_CLASSES, MOST_SIDE, SPLITS, Images
from dpcnn.data.targets import targets_of
from dpcnn.errors import DataError, printable
from dpcnn.nn.losses import CLASSES, TARGETS
from dpcnn.parallel.tree import chunks

HASHED = 1024  # samples at a time


@dataclass
class Source:
    """The images and labels of a source.

    Attributes:
        splits: for each split, images (n, H, W, C), uint8, and labels, see :data:`dpcnn.data.shards.LABELS`.
        origin: the names of the source and their values, for people.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
        orders: for each shuffled split, the order (n,) of its samples.
    """

    splits: dict[str, tuple[Images, Array]]
    origin: dict[str, str]
    targets: str = CLASSES
    orders: dict[str, NDArray[Any]] = field(default_factory=dict)

    def shuffle(self, seed: int) -> None:
        """Shuffle the samples of each split; the order depends only on the seed."""
        for number, split in enumerate(SPLITS):
            self.orders[split] = permutation(seed, number, self.samples(split), SHUFFLE)
        self.origin["order"] = f"shuffled by seed {seed}"

    @property
    def classes(self) -> int:
        """The number of classes, labels or values."""
        labels = [labels for _, labels in self.splits.values()]
        return 1 + max(int(each.max()) for each in labels) if self.targets == CLASSES else labels[0].shape[1]

    def samples(self, split: str) -> int:
        """The number of samples of a split."""
        return len(self.splits[split][1])

    def part(self, split: str, start: int, stop: int) -> tuple[Images, Array]:
        """The samples ``start .. stop - 1`` of a split, in order: images (n, H, W, C) and labels (n,) or (n, K)."""
        images, labels = self.splits[split]
        if split in self.orders:
            indices = self.orders[split][start:stop]
            return images[indices], labels[indices]
        return images[start:stop], labels[start:stop]

    def sha256(self, split: str) -> str:
        """The sha256 of all images' bytes and then all labels', in order."""
        digest = hashlib.sha256()
        for kind in (0, 1):
            for start, stop in chunks(self.samples(split), HASHED):
                digest.update(np.ascontiguousarray(self.part(split, start, stop)[kind]).data)
        return digest.hexdigest()


IDX_NAMES = {"train": "train", "test": "t10k"}
CSV_NAMES = {"train": "mnist_train.csv", "test": "mnist_test.csv"}
KEYS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
CSV_FOLDER = f"a folder with {' and '.join(CSV_NAMES.values())}"
NPZ_FILE = f"an NPZ file with {', '.join(key for keys in KEYS.values() for key in keys)}"


def read_source(path: Path, targets: str = CLASSES) -> Source:
    """Read a folder of IDX files, a folder of CSV files, or an NPZ file.

    Args:
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`; folders have classes.

    Raises:
        DataError: there is no known source, it is damaged, or its labels are of another kind.
    """
    if targets != CLASSES and not path.is_file():
        raise DataError(f"{path}: {TARGETS[targets]} can only be read from {NPZ_FILE}; give one")
    source = _read_npz(path, targets) if path.is_file() else _read_folder(path)
    shapes = [source.splits[split][0].shape[1:] for split in SPLITS]
    if shapes[0] != shapes[1]:
        raise DataError(f"{path}: training images are {shapes[0]}, test images {shapes[1]}; expected the same shape")
    return source


def _read_folder(path: Path) -> Source:
    if not path.is_dir():
        raise DataError(f"{path}: not a folder or a plain file; expected {NPZ_FILE}, or a folder of IDX or CSV files")
    known: list[tuple[Callable[[Path, str], list[Path]], Callable[[Sequence[Input]], tuple[Images, Images]]]]
    known = [(_idx_files, _read_idx_pair), (_csv_files, _read_csv)]
    for names, read in known:
        files = {split: names(path, split) for split in SPLITS}
        if all(files.values()):
            return _read_files(files, read)
    raise DataError(
        f"{path}: expected train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
        f"t10k-labels-idx1-ubyte (.gz or not), or {' and '.join(CSV_NAMES.values())}"
    )


def _read_files(files: dict[str, list[Path]], read: Callable[[Sequence[Input]], tuple[Images, Images]]) -> Source:
    source = Source({}, {})
    for split, paths in files.items():
        with ExitStack() as opened:
            inputs = [opened.enter_context(open_input(path)) for path in paths]
            source.origin |= {each.path.name: f"sha256 {each.sha256()}" for each in inputs}
            source.splits[split] = _checked(paths[0], *read(inputs), CLASSES)
    return source


def _idx_files(folder: Path, split: str) -> list[Path]:
    stems = [f"{IDX_NAMES[split]}-images-idx3-ubyte", f"{IDX_NAMES[split]}-labels-idx1-ubyte"]
    paths = [_first(folder / f"{stem}.gz", folder / stem) for stem in stems]
    return [path for path in paths if path] if all(paths) else []


def _csv_files(folder: Path, split: str) -> list[Path]:
    name = CSV_NAMES[split]
    path = _first(folder / name, folder / f"{name}.gz")
    return [path] if path else []


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _read_idx_pair(files: Sequence[Input]) -> tuple[Images, Images]:
    images, labels = map(read_idx, files)
    return images, labels


def _read_csv(files: Sequence[Input]) -> tuple[Images, Images]:
    return read_csv(files[0])


def _read_npz(path: Path, targets: str) -> Source:
    """Read an NPZ file with the keys of Keras."""
    with open_input(path) as file:
        if file.head(2) != ZIP:
            what = "a single CSV file is not a source" if path.suffix.lower() == ".csv" else "not an NPZ file"
            raise DataError(f"{path}: {what}; expected {CSV_FOLDER}, a folder of IDX files, or {NPZ_FILE}")
        origin = {printable(path.name)[:255]: f"sha256 {file.sha256()}"}
        headers = read_headers(file)
        missing = [key for keys in KEYS.values() for key in keys if key not in headers]
        if missing:
            raise DataError(f"{path}: holds no {missing[0]}; expected {NPZ_FILE}")
        arrays = read_arrays(file, [headers[key] for keys in KEYS.values() for key in keys])
    pairs = {split: _checked(path, arrays[2 * n], arrays[2 * n + 1], targets) for n, split in enumerate(KEYS)}
    columns = {labels.shape[1:] for _, labels in pairs.values()}
    if len(columns) > 1:
        raise DataError(f"{path}: y_train and y_test have another number of columns; give both the same")
    return Source(pairs, origin, targets)


def _checked(path: Path, images: NDArray[Any], labels: NDArray[Any], targets: str) -> tuple[Images, Array]:
    """The images as (n, H, W, C) of bytes, the labels as :data:`dpcnn.data.shards.LABELS` describes them."""
    if images.ndim == 3:
        images = images[..., None]
    if targets != CLASSES:
        labels = targets_of(path, labels, targets)
    elif labels.ndim != 1:
        raise DataError(f"{path}: labels {labels.shape}: expected (n,); for (n, K) give --targets multilabel or values")
    if images.ndim != 4 or len(images) != len(labels):
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape} do not match; "
            "expected images (n, H, W) or (n, H, W, C), and labels (n,)"
        )
    if not images.size or max(images.shape[1:]) > MOST_SIDE:
        raise DataError(f"{path}: images {images.shape}: expected at least one, with sides up to {MOST_SIDE:,}")
    if images.dtype != np.uint8:
        scale = "multiply by 255 and convert" if images.dtype.kind == "f" else "convert them"
        raise DataError(f"{path}: expected uint8 images 0..255 (n, H, W, C), not {images.dtype}; {scale}")
    return images, labels if targets != CLASSES else _bytes(path, labels)


def _bytes(path: Path, labels: NDArray[Any]) -> Images:
    if labels.dtype.kind not in "iu":
        advice = "give --targets values for a regression" if labels.dtype.kind == "f" else "convert them"
        raise DataError(f"{path}: expected labels of whole numbers, not {labels.dtype}; {advice}")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= MOST_CLASSES:
        wrong = most if least >= 0 else least
        raise DataError(
            f"{path}: labels up to {MOST_CLASSES - 1} ({MOST_CLASSES} classes) are supported, found {wrong}; "
            "number the classes from 0"
        )
    return labels.astype(np.uint8, copy=False)
