"""Draw the curves of runs, and the filters of the first layer: dpcnn plot RUN [RUN...]"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.base.files import Folder
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.dataset import find_data, find_data_of
from dpcnn.errors import ConfigError
from dpcnn.flags import add_import
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.curves import draw_curves
from dpcnn.reporting.figures import KINDS
from dpcnn.reporting.first_layer import draw_first_layer, read_test_image
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import RunFolder, find_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--filters", action="store_true", help="also draw the first layer's filters, and its output for a test sample"
    )
    parser.add_argument(
        "--sample", type=int, metavar="N", help="with --filters: the index of this test sample (default 0)"
    )
    parser.add_argument(
        "--data", metavar="NAME|DIR", help="with --filters: a data set to use in place of the first run's"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder for the pictures (default: the first RUN)")
    add_import(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Draw on rank 0; the other ranks of ``comm`` wait for its success or its error."""
    with comm.fail_together():
        for name in ("sample", "data"):
            if getattr(options, name) is not None and not options.filters:
                raise ConfigError(f"--{name}: has no effect without --filters; give both, or leave it out")
        if comm.rank == 0:
            out, sample = options.out or options.runs[0], (options.sample or 0) if options.filters else None
            draw(options.runs, out, sample, options.data)
    return DONE


def draw(runs: Sequence[Path], out: Path, sample: int | None, data: str | None) -> None:
    """Draw the curves and, given a sample's number, the first run's first layer; print the names of the files."""
    for folder in runs:
        RunFolder(folder).check_started()
    checkpoint = read(find_checkpoint(runs[0])) if sample is not None else None
    image = None
    if checkpoint:
        folder = find_data(data) if data else find_data_of(runs[0], checkpoint.config.data)
        image = read_test_image(folder, sample or 0)
    out.mkdir(parents=True, exist_ok=True)
    with Folder(out) as place:
        names = ("curves", "compared", "filters", "maps")
        place.check(*(f"{name}{kind}" for name in names for kind in KINDS))
    print(draw_curves(runs, out / ("curves" if len(runs) == 1 else "compared")))
    if checkpoint and image is not None:
        print(*draw_first_layer(checkpoint, image, out), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
