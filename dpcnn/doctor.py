"""Check whether this machine or job is fit for training: dpcnn doctor, alone or under mpirun or srun"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.cli import DONE, Parser, run_command
from dpcnn.cluster.checks import FAIL, judge, screen
from dpcnn.cluster.probes import collect
from dpcnn.parallel.comm import SerialComm

UNFIT = 1  # exit status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn doctor", description=__doc__)
    parser.add_argument("--data", default="mnist", metavar="NAME|DIR", help="the data set to check (default mnist)")
    parser.add_argument(
        "--out", type=Path, default=Path("."), metavar="DIR", help="the folder for the runs (default .)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object with the checks and the facts that they use"
    )
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Collect the facts of all ranks, judge them, and print the verdicts; the status is 1 if a check fails."""
    facts = collect(comm, options.data, options.out)
    checks = judge(facts)
    if comm.rank == 0:
        found = {"checks": [check._asdict() for check in checks], "facts": facts}
        print(json.dumps(found) if options.json else screen(checks))
    return UNFIT if any(check.verdict == FAIL for check in checks) else DONE


if __name__ == "__main__":
    sys.exit(main())
