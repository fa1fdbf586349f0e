"""Prepare, fetch and inspect data sets: dpcnn data prepare|fetch|info"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dpcnn.base import fields
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.downloads import DOWNLOADS
from dpcnn.data.info import info
from dpcnn.data.prepare import SHARDS, Target, fetch_and_prepare, prepare
from dpcnn.data.shards import MOST_SHARDS
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import CLASSES, TARGETS
from dpcnn.parallel.comm import SerialComm


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.data", description=__doc__)
    actions = parser.add_subparsers(dest="command", required=True, metavar="prepare|fetch|info")
    make = actions.add_parser("prepare", help="make a data set from IDX files, CSV files or an NPZ file")
    make.add_argument(
        "source", type=Path, help="a folder of IDX or CSV files (also .gz), or an NPZ file with the keys of Keras"
    )
    make.add_argument("--out", type=Path, required=True, help="the new data set's folder")
    make.add_argument("--name", help="the data set's name (default: that of the folder)")
    make.add_argument(
        "--targets",
        choices=sorted(TARGETS),
        default=CLASSES,
        help="NPZ: the kind of y_train and y_test: one class per sample; or zeros and ones (n, K); or floats (n,) or "
        "(n, K) for regression (default classes)",
    )
    get = actions.add_parser("fetch", help="download, check and prepare a data set")
    get.add_argument("name", choices=sorted(DOWNLOADS))
    get.add_argument("--out", type=Path, help="the new data set's folder (default data/NAME)")
    get.add_argument("--mirror", help="address to download from, instead of the known ones")
    for each in (make, get):
        each.add_argument(
            "--shards", type=int, default=SHARDS, help=f"data shards of the training samples (default {SHARDS})"
        )
        each.add_argument("--contiguous", action="store_true", help="do not compress: for data sets larger than memory")
        each.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle each split: for sources sorted by class")
    show = actions.add_parser("info", help="show the contents of a data set, and verify its checksums")
    show.add_argument("data", help="a name under data/, or a folder")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Run the action of the command line on every rank of ``comm``."""
    with comm.fail_together():
        if options.command != "info":
            check(options)
    if options.command == "info":
        lines = info(comm, options.data)
        if comm.rank == 0:
            print("\n".join(lines))
        return DONE
    out = options.out or Path("data") / options.name
    target = Target(out, options.name, options.shards, options.contiguous, options.shuffle)
    if options.command == "prepare":
        prepare(comm, options.source, replace(target, targets=options.targets), print)
    else:
        fetch_and_prepare(comm, options.name, options.mirror, target, print)
    return DONE


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


if __name__ == "__main__":
    sys.exit(main())
