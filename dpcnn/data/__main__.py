"""Prepare, fetch and inspect data sets: dpcnn data prepare|fetch|info|show"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpcnn.base import fields
from dpcnn.base.files import write_file
from dpcnn.base.new_files import HTML, check_replaceable
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.classes import read_names
from dpcnn.data.dataset import find_data, load
from dpcnn.data.downloads import DOWNLOADS
from dpcnn.data.info import info
from dpcnn.data.pixels import LEAST_WHITE, MOST_WHITE
from dpcnn.data.prepare import SHARDS, Target, fetch_and_prepare, prepare
from dpcnn.data.shards import CROP, MOST_SHARDS, RESIZE, SPLITS
from dpcnn.data.source_options import TEST_PART, SourceOptions
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import CLASSES, TARGETS
from dpcnn.parallel.comm import SerialComm

MOST_SIZE = 4096
"""The largest side of images that are made of pictures."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn data", description=__doc__)
    actions = parser.add_subparsers(dest="command", required=True, metavar="prepare|fetch|info|show")
    make, get, tell, show = (
        actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}: dpcnn data {name} {words}")
        for name, words, text in (
            ("prepare", "SOURCE --out DIR", "make a data set from pictures or arrays"),
            ("fetch", "NAME", "download, check and prepare a data set"),
            ("info", "NAME|DIR", "print the contents of a data set, and verify its checksums"),
            ("show", "NAME|DIR", "make a page with samples of each class, and samples that look wrong"),
        )
    )
    make.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a folder of pictures per class, or a CSV file of file,label; or a folder of IDX, CSV or NPY "
        "files, an NPZ file with the keys of Keras, or the arrays of an HDF5 file, as in file.h5:images,labels",
    )
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new data set's folder")
    make.add_argument("--name", help="the data set's name (default: that of the folder)")
    make.add_argument(
        "--names", metavar="A,B,..|FILE", help="class names: separated by commas, or a text file with one per line"
    )
    make.add_argument(
        "--size", metavar="HxW", help="pictures: the height and width of the images, as in 64x48; 64 means 64x64"
    )
    make.add_argument("--colour", choices=("rgb", "grey"), help="pictures: the colours of the images (default rgb)")
    make.add_argument(
        "--strict", action="store_true", help="pictures: fail if one can't be read, instead of skipping it"
    )
    make.add_argument(
        "--resize",
        choices=RESIZE,
        default=CROP,
        help="how pictures become images, here and in predict: the centre is cropped, or a single character is centred "
        "as in MNIST (default crop)",
    )
    make.add_argument(
        "--layout", choices=("hwc", "chw"), help="arrays: whether height and width or the channels come first"
    )
    make.add_argument(
        "--max-value",
        type=float,
        metavar="X",
        help="arrays of uint16 or floats: the value of white; black is 0 (default 65535, or 1 for floats)",
    )
    make.add_argument(
        "--test",
        type=float,
        metavar="N",
        help="for a source without test samples: their number or fraction, drawn from each class in proportion "
        f"(default {TEST_PART})",
    )
    make.add_argument("--seed", type=int, help="the seed that draws the test samples (default 0)")
    make.add_argument(
        "--targets",
        choices=sorted(TARGETS),
        default=CLASSES,
        help="arrays: the kind of the labels: one class per sample; or zeros and ones (n, K); or floats (n,) or "
        "(n, K) for regression (default classes)",
    )
    known = sorted(DOWNLOADS)
    get.add_argument("name", choices=known, metavar="NAME", help=f"the data set: {', '.join(known)}")
    get.add_argument("--out", type=Path, metavar="DIR", help="the new data set's folder (default data/NAME)")
    get.add_argument("--mirror", metavar="URL", help="address to download from, instead of the known ones")
    for each in (make, get):
        each.add_argument(
            "--shards", type=int, default=SHARDS, help=f"data shards of the training samples (default {SHARDS})"
        )
        each.add_argument("--contiguous", action="store_true", help="do not compress: for data sets larger than memory")
        each.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle each split: for sources sorted by class")
    for each in (tell, show):
        each.add_argument("data", metavar="NAME|DIR", help="a name under data/, or a folder")
    show.add_argument("--page", type=Path, metavar="FILE", help="the page (default samples.html in the set's folder)")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Run the action of the command line on every rank of ``comm``."""
    if options.command == "info":
        lines = info(comm, options.data)
        if comm.rank == 0:
            print("\n".join(lines))
        return DONE
    if options.command == "show":
        with comm.fail_together():
            if comm.rank == 0:
                show(options.data, options.page)
        return DONE
    with comm.fail_together():
        check(options)
    out = options.out or Path("data") / options.name
    target = Target(out, options.name, options.shards, options.contiguous, options.shuffle)
    if options.command == "prepare":
        with comm.fail_together():
            target = replace(target, options=source_options(options))
        prepare(comm, options.source, target, print)
    else:
        fetch_and_prepare(comm, options.name, options.mirror, target, print)
    return DONE


def show(data: str, page: Path | None) -> None:
    """Write the page on a data set, and print its name."""
    from dpcnn.reporting.data_page import data_page  # here, because the other actions start faster without it
    from dpcnn.reporting.page import check_matplotlib

    check_matplotlib()
    folder = find_data(data)
    page = page or folder / "samples.html"
    check_replaceable("--page", page, HTML)
    splits = {split: load(folder, split, SerialComm()) for split in SPLITS}
    write_file(page, data_page(folder, splits).encode())
    print(f"{page}: {page.stat().st_size:,} bytes")


def check(options: Namespace) -> None:
    """Raise ConfigError, with the flag, if an option of a new data set is invalid."""
    try:
        fields.integer(options.shards, "--shards", 1, MOST_SHARDS)
        fields.integer(options.shuffle or 0, "--shuffle")
        if options.command == "prepare" and options.name is not None:
            fields.name(options.name, "--name")
    except fields.FieldError as error:
        raise ConfigError(str(error)) from None
    if options.command == "fetch" and not (options.mirror or "http:").startswith(("http:", "https:")):
        raise ConfigError(f"--mirror: expected an address http://.. or https://.., not {options.mirror!r}")


def source_options(options: Namespace) -> SourceOptions:
    """How to read the source.

    Raises:
        ConfigError: an option is wrong.
    """
    try:
        test = None if options.test is None else fields.number(options.test, "--test", 0)
        seed = None if options.seed is None else fields.integer(options.seed, "--seed")
        white = options.max_value
        white = None if white is None else fields.number(white, "--max-value", LEAST_WHITE, MOST_WHITE)
    except fields.FieldError as error:
        raise ConfigError(str(error)) from None
    names = read_names(options.names) if options.names else None
    size = image_size(options.size) if options.size else None
    layout, targets, resize = options.layout, options.targets, options.resize
    return SourceOptions(names, targets, layout, test, seed, resize, size, options.colour, options.strict, white)


def image_size(text: str) -> tuple[int, int]:
    """The height and width of ``--size``: two numbers, or one for both.

    Raises:
        ConfigError: it is not HxW.
    """
    sides = [fields.digits(word) or 0 for word in text.lower().split("x")]
    if len(sides) > 2 or not all(1 <= side <= MOST_SIZE for side in sides):
        raise ConfigError(f"--size: expected a height and a width up to {MOST_SIZE}, as in 64x64, not {text[:60]!r}")
    return sides[0], sides[-1]


if __name__ == "__main__":
    sys.exit(main())
