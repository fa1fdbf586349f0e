"""Train the recipes of published networks, and compare the accuracy: dpcnn reproduce [RECIPE...]"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from dpcnn.base.files import write_file
from dpcnn.base.new_files import check_replaceable
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.errors import ConfigError
from dpcnn.evidence.jobs import numbers
from dpcnn.evidence.published import PUBLISHED, Trainings, check_recipe, table
from dpcnn.flags import retype
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import check_starter, usual_launcher

TITLE = b"# Results"
"""The first line of the Markdown file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, SerialComm())


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn reproduce", description=__doc__)
    parser.add_argument(
        "recipes", nargs="*", metavar="RECIPE", help=f"recipes from {', '.join(PUBLISHED)} (default all)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="one run per recipe and seed (default 0,1,2)")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of each run (default 2)")
    parser.add_argument(
        "--launcher", default=usual_launcher(), help="command that starts the ranks, as in dpcnn verify"
    )
    parser.add_argument("--data", help="data set to use in place of those of the recipes")
    parser.add_argument("--max-steps", type=int, help="end each run after this many steps: for a trial")
    parser.add_argument("--torch", default="", metavar="RECIPE,..", help="train these recipes in PyTorch as well")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="folder that keeps the runs; complete runs are not repeated"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to this Markdown file")
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Train every recipe with every seed, on request also in PyTorch, and write the table."""
    names = options.recipes or list(PUBLISHED)
    in_torch = [name for name in options.torch.split(",") if name]
    for name in [*names, *in_torch]:
        check_recipe(name)
    if others := [name for name in in_torch if name not in names]:
        raise ConfigError(f"--torch: {', '.join(others)} is not among the recipes to train; name it there too")
    if options.out:
        check_replaceable("--out", options.out, TITLE)
    numbers("--seeds", options.seeds, "0,1,2", least=0)
    if options.ranks < 1:
        raise ConfigError(f"--ranks: must be at least 1, not {options.ranks}")
    check_starter("dpcnn.reproduce", options.launcher)
    more = retype({key: value for key in ("data", "max_steps") if (value := getattr(options, key)) is not None})
    say = partial(print, file=sys.stderr, flush=True)
    with TemporaryDirectory(prefix="dpcnn-reproduce-") as work:
        trainings = Trainings(options.launcher, options.ranks, options.runs or Path(work), more, say)
        rows = [row for name in names for row in trainings.rows(name, options.seeds.split(","), name in in_torch)]
    text = table(rows, options.ranks)
    print(text)
    if options.out:
        write_file(options.out, TITLE, f"\n\n{text}\n".encode())
    return DONE


if __name__ == "__main__":
    sys.exit(main())
