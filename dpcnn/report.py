"""Write a run as one HTML page: dpcnn report RUN"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.base.files import write_file
from dpcnn.base.new_files import HTML, check_replaceable
from dpcnn.cli import DONE, Parser, add_verify, run_command
from dpcnn.flags import add_import
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.page import check_matplotlib, page
from dpcnn.runs.folder import RunFolder, numerics_of
from dpcnn.training.examination import examine, read_on_rank_0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, numerics=lambda options: numerics_of(options.run))


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--data", metavar="NAME|DIR", help="a data set to use in place of the run's")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (default RUN/report.html)")
    add_verify(parser)
    add_import(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Evaluate the run's best checkpoint on every rank of ``comm``; rank 0 writes the page."""
    folder, out = RunFolder(options.run), options.out or options.run / "report.html"
    with comm.fail_together():
        if comm.rank == 0:
            folder.check_started()
            check_replaceable("--out", out, HTML)
            check_matplotlib()
    path, checkpoint = read_on_rank_0(comm, options.run)
    found = examine(comm, path, checkpoint, "test", options.data, options.verify)
    with comm.fail_together():
        if checkpoint:
            write_file(out, page(folder, path, checkpoint, found).encode())
            print(f"{out}: {out.stat().st_size:,} bytes")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
