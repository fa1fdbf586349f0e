"""Sources of arrays: folders of IDX, CSV, NPY, CIFAR or EMNIST files, NPZ files, and HDF5 files. All are untrusted."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpcnn.base.arrays import Array, Shape
from dpcnn.data.cifar import cifar_files, read_cifar
from dpcnn.data.classes import Names, number_labels, numbered
from dpcnn.data.emnist import emnist_files, read_emnist
from dpcnn.data.formats import read_csv, read_idx
from dpcnn.data.hdf5 import SIGNATURE, read_hdf5
from dpcnn.data.inputs import Input, open_input
from dpcnn.data.kinds import HEAD, not_read
from dpcnn.data.npz import ZIP, read_headers, read_npy, read_or_keep
from dpcnn.data.pixels import BYTES, WHITE
from dpcnn.data.shards import MOST_SIDE, SPLITS, Images
from dpcnn.data.source_options import SourceOptions
from dpcnn.data.sources import Source
from dpcnn.data.targets import targets_of
from dpcnn.errors import ConfigError, DataError, printable
from dpcnn.nn.losses import CLASSES

CHANNELS = (1, 3, 4)
"""Numbers of channels by which the layout of an array is recognised."""

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
        DataError: there is no file of a known format, or a file is damaged.
        ConfigError: the options do not fit it.
    """
    pairs, origin = _read_hdf5(path, names) if names else _read_npz(path) if path.is_file() else _read_folder(path)
    if options.size or options.strict:
        raise ConfigError(f"--size and --strict are for pictures, but {path} holds arrays; drop the options")
    if options.colour:
        raise ConfigError(f"--colour: is for pictures, but {path} holds arrays; drop the option")
    images = {split: _checked(path, *pair) for split, pair in pairs.items()}
    labels, names = _labels(path, {split: pair[1] for split, pair in pairs.items()}, options)
    first = options.layout == "chw"
    pixels, max_value = _pixels(path, images, options)
    source = Source(
        images,
        labels,
        names,
        options.resize,
        origin,
        options.targets,
        channels_first=first,
        pixels=pixels,
        max_value=max_value,
    )
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


def _pixels(path: Path, images: dict[str, Any], options: SourceOptions) -> tuple[str, float | None]:
    """The type of the images' values and the value of white; None for uint8."""
    types = {each.dtype.newbyteorder("=").name for each in images.values()}
    pixels = types.pop()
    if types or pixels not in WHITE:
        found = ", ".join(str(each.dtype) for each in images.values())
        raise DataError(f"{path}: expected images of {', '.join(WHITE)}, one type for all, not {found}; convert them")
    if pixels == BYTES and options.max_value not in (None, WHITE[BYTES]):
        raise ConfigError(f"--max-value: the images of {path} are uint8, so white is 255; drop the option")
    return pixels, None if pixels == BYTES else options.max_value or WHITE[pixels]


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
KINDS = [(_idx_files, _read_idx_pair), (_csv_files, _read_csv), (_npy_files, _read_npy_pair)]
KINDS += [(cifar_files, read_cifar), (emnist_files, read_emnist)]
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
            raise not_read(path, file.head(HEAD), f"{NPZ_FILE}, or a folder of IDX, CSV or picture files")
        origin = {printable(path.name)[:255]: f"sha256 {file.sha256()}"}
        headers = read_headers(file)
        wanted = {split: keys for split, keys in KEYS.items() if split == "train" or set(keys) & set(headers)}
        missing = [key for keys in wanted.values() for key in keys if key not in headers]
        if missing:
            names = printable(", ".join(headers))[:200] or "no arrays"
            raise DataError(
                f"{path}: holds {names}, but no {missing[0]}; expected {NPZ_FILE}: save it again, as in "
                "np.savez(FILE, x_train=images, y_train=labels)"
            )
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
    """The images as (n, H, W, C), one for each label."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not labels.ndim or len(images) != len(labels):
        raise DataError(
            f"{path}: images {images.shape} and labels {labels.shape} do not match; "
            "expected images (n, H, W) or (n, H, W, C), and labels (n,)"
        )
    if not images.shape[0] or min(images.shape) < 1 or max(images.shape[1:]) > MOST_SIDE:
        raise DataError(f"{path}: images {images.shape}: expected at least one, with sides up to {MOST_SIDE:,}")
    return images
