"""Make a checkpoint from a safetensors file: dpcnn import FILE.safetensors"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.base.arrays import Shape
from dpcnn.base.fields import FieldError, number
from dpcnn.base.new_files import check_free
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.classes import numbered, read_names
from dpcnn.data.pixels import LEAST_WHITE, MOST_WHITE
from dpcnn.data.shards import CROP, RESIZE
from dpcnn.errors import ConfigError
from dpcnn.flags import add_import
from dpcnn.interop.metadata import Description
from dpcnn.interop.safetensors import from_safetensors
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.runs.checkpoint import MOST_SIDE, write

DESCRIBING = ("--image-shape", "--classes", "--names", "--resize", "--max-value")
"""The options that describe a network together with --recipe."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn import", description=__doc__)
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.safetensors",
        help="a safetensors file from dpcnn export or from a PyTorch model",
    )
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the network, for a file that does not describe it")
    parser.add_argument(
        "--image-shape",
        metavar="H,W,C",
        help="with --recipe: the shape of the images (default 28,28,1)",
    )
    parser.add_argument("--classes", type=int, metavar="N", help="with --recipe: the number of classes (default 10)")
    parser.add_argument(
        "--names",
        metavar="A,B,..|FILE",
        help="with --recipe: class names, in place of --classes; a file has one per line",
    )
    parser.add_argument("--resize", choices=RESIZE, help="with --recipe: how predict resizes pictures (default crop)")
    parser.add_argument(
        "--max-value",
        type=float,
        metavar="X",
        help="with --recipe, for a network of uint16 or float images: the value of white (default: uint8 images)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the checkpoint (default ./NAME.h5 for NAME.safetensors)"
    )
    add_import(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Write the checkpoint on rank 0; the other ranks of ``comm`` wait for its success or its error."""
    with comm.fail_together():
        if comm.rank == 0:
            out = options.out or Path(f"{options.file.stem}.h5")
            check_free(out)
            checkpoint = from_safetensors(options.file, described(options))
            write(out, checkpoint)
            print(f"{out}: {checkpoint.config.model}, weights {checkpoint.weights_sha256}")
    return DONE


def described(options: Namespace) -> Description | None:
    """The network that --recipe and the options for it describe; None without --recipe."""
    if not options.recipe:
        given = [option for option in DESCRIBING if getattr(options, option[2:].replace("-", "_")) is not None]
        if given:
            raise ConfigError(f"{', '.join(given)}: for a network that --recipe names; give --recipe, or drop this")
        return None
    classes = 10 if options.classes is None else options.classes
    if not 1 <= classes <= MOST_SIDE:
        raise ConfigError(f"--classes: must be from 1 to {MOST_SIDE}, not {classes}")
    names = read_names(options.names) if options.names else numbered(classes)
    shape, white = image_shape(options.image_shape or "28,28,1"), max_value(options.max_value)
    return Description(read_recipe(options.recipe), shape, names, options.resize or CROP, step=0, max_value=white)


def image_shape(text: str) -> Shape:
    """The value of --image-shape."""
    words = text.split(",")
    if len(words) != 3 or not all(word.isdecimal() and 0 < int(word[:9]) <= MOST_SIDE for word in words):
        raise ConfigError(f"--image-shape: expected H,W,C such as 28,28,1, not {text}")
    return tuple(int(word) for word in words)


def max_value(white: float | None) -> float | None:
    """The value of --max-value."""
    try:
        return white if white is None else number(white, "--max-value", LEAST_WHITE, MOST_WHITE)
    except FieldError as error:
        raise ConfigError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
