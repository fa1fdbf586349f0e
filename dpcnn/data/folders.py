"""Sources of picture files: a folder per class, or a CSV file of files and labels. All untrusted."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.files import open_plain
from dpcnn.data.arrays import CSV_FOLDER
from dpcnn.data.classes import MOST_CLASSES, assign_numbers, class_type
from dpcnn.data.decoding import is_picture, read_image, versions
from dpcnn.data.inputs import open_input
from dpcnn.data.shards import MNIST, SPLITS, Images
from dpcnn.data.source_options import SourceOptions
from dpcnn.data.sources import Source
from dpcnn.errors import ConfigError, DataError, printable
from dpcnn.nn.losses import CLASSES

HEADERS = ("file", "filename", "filepath", "path", "image")
"""What the first cell of a CSV file may be called."""

MOST_FILES = 1 << 26


@dataclass
class Listing:
    """Picture files by class, still without numbers for the classes.

    Attributes:
        files: paths relative to the source's folder, each as bytes, in arrays of one class or block each.
        labels: for each file the index of its class in ``classes``, in arrays as long as those of ``files``.
        classes: the names of the classes, in the order in which they were found.
    """

    files: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)

    def add(self, files: Sequence[bytes], labels: Sequence[str]) -> None:
        """Add files with their labels.

        Raises:
            DataError: there are too many classes.
        """
        numbers = [self.classes.setdefault(label, len(self.classes)) for label in labels]
        if len(self.classes) > MOST_CLASSES:
            raise DataError(f"more than {MOST_CLASSES:,} classes; at most {MOST_CLASSES:,} are supported")
        self.files.append(np.array(files))
        self.labels.append(np.array(numbers, np.uint16))


@dataclass
class PictureSource(Source):
    """Pictures that are decoded when their samples are taken; those that can't be read are skipped.

    Attributes:
        folder: of the source.
        strict: whether a picture that can't be read is an error.
    """

    folder: Path = Path()
    strict: bool = False
    skips: ClassVar = True

    def take(self, split: str, indices: Array) -> tuple[Images, Array]:
        """The images and labels of those samples that can be read.

        Raises:
            DataError: one can't be read, if the source is strict.
        """
        files = self.images[split].files
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        readable: list[int] = []
        for number in indices.tolist():
            try:
                images[len(readable)] = self._image(os.fsdecode(files[number]))
                readable.append(number)
            except DataError as error:
                if self.strict:
                    raise
                self.faults.append(printable(str(error)))
        return images[: len(readable)], self.labels[split][np.array(readable, np.int64)]

    def _image(self, name: str) -> Images:
        with open_input(self.folder / name) as source:
            if not is_picture(source.head(4)):
                raise DataError(f"{source.path}: expected a PNG, JPEG, WebP or TIFF file")
            return read_image(source, self.image_shape, self.resize)


@dataclass(frozen=True)
class Files:
    """The picture files of a split.

    Attributes:
        files: (n,) paths relative to the source's folder, as bytes.
        shape: (n, H, W, C) of their images.
    """

    files: Array
    shape: Shape


def read_pictures_folder(folder: Path, options: SourceOptions) -> Source:
    """The pictures of a folder with a folder per class; or of its folders train and test, if there is nothing else.

    Raises:
        DataError: there are no pictures, or the classes of the test pictures are others.
        ConfigError: the options do not fit.
    """
    inside = _folders(folder)
    splits = SPLITS if inside == sorted(SPLITS) else ("train",)
    roots = {split: split for split in splits} if inside in (["train"], sorted(SPLITS)) else {"train": ""}
    listings = {split: _of_classes(folder, root) for split, root in roots.items()}
    return _source(folder, folder, listings, options)


def read_pictures_list(path: Path, options: SourceOptions) -> Source:
    """The pictures of a CSV file with a file and its label per line, and perhaps a header; paths are relative to it.

    Raises:
        DataError: it is not such a file.
        ConfigError: the options do not fit.
    """
    listing = Listing()
    try:
        with open_plain(path) as file:
            lines = (line.decode("utf-8-sig" if not n else "utf-8") for n, line in enumerate(file))
            _add_rows(listing, csv.reader(lines))
    except (OSError, UnicodeDecodeError, csv.Error, DataError) as error:
        raise DataError(f"{path}: {error}; expected lines of file,label in UTF-8; for pixels, {CSV_FOLDER}") from None
    return _source(path, path.parent, {"train": listing}, options)


def _add_rows(listing: Listing, rows: Iterator[list[str]]) -> None:
    files: list[bytes] = []
    labels: list[str] = []
    for number, row in enumerate(rows, 1):
        if not row or (number == 1 and row[0].strip().lower() in HEADERS):
            continue
        if len(row) != 2 or "\0" in row[0]:
            raise DataError(
                f"line {number} has {len(row)} values" if len(row) != 2 else f"line {number} has a zero byte"
            )
        files.append(os.fsencode(row[0].strip()))
        labels.append(row[1].strip())
        if len(files) > MOST_FILES:
            raise DataError(f"more than {MOST_FILES:,} lines")
    listing.add(files, labels)


def _of_classes(folder: Path, root: str) -> Listing:
    """All files of the folders of classes in a folder: by class, and then by name."""
    listing = Listing()
    for name in _folders(folder / root):
        with os.scandir(folder / root / name) as entries:
            files = sorted(os.fsencode(each.name) for each in entries if _is_file(each))
        if files:
            prefix = os.fsencode(os.path.join(root, name))
            listing.add([os.path.join(prefix, file) for file in files], [name] * len(files))
    return listing


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if not each.name.startswith(".") and each.is_dir())


def _is_file(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and not entry.is_dir()


def _source(path: Path, folder: Path, listings: dict[str, Listing], options: SourceOptions) -> Source:
    """The source of these files. ``path`` is for messages; ``folder`` is that to which the paths are relative."""
    if options.size is None:
        raise ConfigError(f"--size: {path} holds pictures; give the height and width of the images, as in --size 64x64")
    if options.resize == MNIST and options.colour != "grey":
        raise ConfigError("--resize mnist makes grey images; give --colour grey")
    if options.layout or options.targets != CLASSES or options.max_value:
        raise ConfigError("--layout, --targets and --max-value are for arrays; drop the option")
    for split, listing in listings.items():
        if not any(map(len, listing.files)):
            raise DataError(f"{path}: no files of the {split} samples; expected a folder of pictures for each class")
    found = {name for listing in listings.values() for name in listing.classes}
    names = assign_numbers(path, found, options.names)
    shape = (*options.size, 1 if options.colour == "grey" else 3)
    files, labels = {}, {}
    for split, listing in listings.items():
        every = np.concatenate(listing.files)
        numbers = np.array([names[name] for name in listing.classes], class_type(len(names)))
        files[split], labels[split] = Files(every, (len(every), *shape)), numbers[np.concatenate(listing.labels)]
    origin = {"pictures": f"{sum(map(len, labels.values())):,} files, {options.colour}", "decoded by": versions()}
    return PictureSource(
        files, labels, tuple(names), options.resize, origin, folder=folder, strict=options.strict
    ).with_test(path, options)
