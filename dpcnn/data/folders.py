"""Sources of picture files: a folder per class, or a CSV file of files and labels. All untrusted."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.text import count_of
from dpcnn.data.classes import assign_numbers, class_type
from dpcnn.data.decoding import is_picture, read_image, versions
from dpcnn.data.inputs import open_input
from dpcnn.data.kinds import HEAD, SUFFIXES, first_picture, not_read
from dpcnn.data.lists import Listing, read_list
from dpcnn.data.shards import MNIST, SPLITS, Images
from dpcnn.data.source_options import SourceOptions
from dpcnn.data.sources import Source
from dpcnn.errors import ConfigError, DataError, printable
from dpcnn.nn.losses import CLASSES

PARTS = ("val", "valid", "validation", "dev")
"""Names of a folder of validation samples, which a training draws itself."""


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
            name = os.fsdecode(files[number])
            try:
                images[len(readable)] = self._image(name)
                readable.append(number)
                self.taken.append(name)
            except DataError as error:
                if self.strict:
                    raise
                self.faults.append(printable(str(error)))
        return images[: len(readable)], self.labels[split][np.array(readable, np.int64)]

    def _image(self, name: str) -> Images:
        with open_input(self.folder / name) as source:
            start = source.head(HEAD)
            if not is_picture(start):
                raise not_read(source.path, start, "a PNG, JPEG, WebP or TIFF file")
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
    roots = _roots(folder)
    listings = {split: _of_classes(folder, root) for split, root in roots.items()}
    for split, listing in listings.items():
        if not listing.files:
            raise DataError(_no_classes(folder / roots[split]))
    return _source(folder, folder, listings, options)


def _roots(folder: Path) -> dict[str, str]:
    """The folder of each split, relative to a source's folder: train and test, in any case, or the source itself.

    Raises:
        DataError: a folder beside train has the name of a part that data sets do not have.
    """
    names = folders_in(folder)
    inside = {name.lower(): name for name in names}
    others = [name for name in inside if name in PARTS]
    if "train" not in inside or set(inside).difference(SPLITS, PARTS) or len(inside) < len(names):
        return {"train": ""}
    if others:
        raise DataError(
            f"{folder}: expected the folders train and test, not {inside[others[0]]}; a training draws its validation "
            f"samples from train: move the pictures of {inside[others[0]]} to train, or call it test"
        )
    return {split: inside[split] for split in SPLITS if split in inside}


def _no_classes(folder: Path) -> str:
    """What is wrong with a folder in which no folder holds files, and what to do."""
    picture = first_picture(folder)
    if picture is None:
        return f"{folder}: no pictures; expected a folder of pictures for each class, as in {folder / 'cat' / '1.jpg'}"
    if len(picture.parts) == 1:
        return (
            f"{folder}: pictures without a folder for their class, such as {picture}; expected a folder for each "
            f"class, as in {folder / 'cat' / picture}; if this folder is itself one class, give the folder above it"
        )
    return (
        f"{folder}: the pictures lie deeper, such as {picture}; expected a folder of pictures for each class: "
        f"give {folder.joinpath(*picture.parts[:-2])}"
    )


def read_pictures_list(path: Path, options: SourceOptions) -> Source:
    """The pictures of a CSV file with a file and its label per line, and perhaps a header; paths are relative to it.

    Raises:
        DataError: it is not such a file.
        ConfigError: the options do not fit.
    """
    return _source(path, path.parent, {"train": read_list(path)}, options)


def _of_classes(folder: Path, root: str) -> Listing:
    """All files of the folders of classes in a folder: by class, and then by name."""
    listing = Listing(remarks=_beside(folder / root))
    for name in folders_in(folder / root):
        with os.scandir(folder / root / name) as entries:
            files = sorted(os.fsencode(each.name) for each in entries if _is_file(each))
        prefix = os.fsencode(os.path.join(root, name))
        if files:
            listing.add([os.path.join(prefix, file) for file in files], [name] * len(files))
        listing.remarks += _left_out(folder / root / name, len(files))
    return listing


def _beside(folder: Path) -> list[str]:
    """A line about a picture beside the folders of the classes."""
    with os.scandir(folder) as entries:
        pictures = sorted(each.name for each in entries if _is_file(each) and each.name.lower().endswith(SUFFIXES))
    return [
        f"warning: {folder / name}: pictures outside the folders of the classes are left out" for name in pictures[:1]
    ]


def _left_out(folder: Path, files: int) -> list[str]:
    """Lines about the folder of a class with this number of files: that it has none, or has folders of its own."""
    lines = [] if files else [f"warning: {folder}: holds no files, so it is no class"]
    if inside := folders_in(folder):
        lines.append(f"warning: {folder / inside[0]}: a folder within that of a class is left out")
    return lines


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if not each.name.startswith(".") and each.is_dir())


def _is_file(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and not entry.is_dir()


def _source(path: Path, folder: Path, listings: dict[str, Listing], options: SourceOptions) -> Source:
    """The source of these files. ``path`` is for messages; ``folder`` is that to which the paths are relative."""
    if options.size is None:
        raise ConfigError(f"--size: {path} holds pictures; give the height and width of the images, as in --size 64x64")
    colour = options.colour or "rgb"
    if options.resize == MNIST and colour != "grey":
        raise ConfigError("--resize mnist makes grey images; give --colour grey")
    if options.layout or options.max_value:
        raise ConfigError("--layout and --max-value are for arrays; drop the option")
    if options.targets != CLASSES:
        raise ConfigError(
            "--targets: a picture has one class; for several labels or values, write images and labels as arrays, such "
            "as an NPZ file with x_train and y_train"
        )
    found = {name for listing in listings.values() for name in listing.classes}
    names = assign_numbers(path, found, options.names)
    shape = (*options.size, 1 if colour == "grey" else 3)
    files, labels = {}, {}
    for split, listing in listings.items():
        every = np.concatenate(listing.files)
        numbers = np.array([names[name] for name in listing.classes], class_type(len(names)))
        files[split], labels[split] = Files(every, (len(every), *shape)), numbers[np.concatenate(listing.labels)]
    count = count_of(sum(map(len, labels.values())), "file")
    origin = {"pictures": f"{count}, {colour}", "decoded by": versions()}
    remarks = [remark for listing in listings.values() for remark in listing.remarks]
    return PictureSource(
        files, labels, tuple(names), options.resize, origin, remarks=remarks, folder=folder, strict=options.strict
    ).with_test(path, options)
