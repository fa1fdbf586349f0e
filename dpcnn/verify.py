"""Compare runs on several numbers of ranks, bit for bit: dpcnn verify"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpcnn.base.files import write_file
from dpcnn.cli import DONE, FAULT, Parser, add_config_flags, given, run_command
from dpcnn.errors import ConfigError
from dpcnn.evidence.jobs import numbers
from dpcnn.evidence.proof import Training, differences, receipt, run_all, table, verdict
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import check_starter, usual_launcher


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all runs agree, 1 if not."""
    return run_command(command, make_parser, argv, SerialComm())


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.verify", description=__doc__)
    parser.add_argument("--ranks", default="1,2,3,4", help="the numbers of ranks to compare (default 1,2,3,4)")
    parser.add_argument("--steps", type=int, default=20, help="the steps of each run (default 20)")
    parser.add_argument(
        "--launcher",
        default=usual_launcher(),
        help='command that starts the ranks, before "-n RANKS" (default mpirun; srun in an allocation without mpirun)',
    )
    parser.add_argument(
        "--receipt", type=Path, default=Path("verify.json"), help="file for the results (default verify.json)"
    )
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the options to start from (default simple-cnn)")
    add_config_flags(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Run the same training on several numbers of ranks, kill and resume one more run, and compare all."""
    counts = _counts(options)
    check_starter("verify", options.launcher)
    training = Training(options.launcher, options.recipe, given(options), options.steps)
    outcomes = run_all(training, counts, partial(print, flush=True))
    different = differences(outcomes)
    print(table(outcomes, different))
    write_file(options.receipt, json.dumps(receipt(outcomes, different), indent=1).encode() + b"\n")
    print(f"{verdict(different)}; receipt: {options.receipt}")
    return FAULT if any(different) else DONE


def _counts(options: Namespace) -> list[int]:
    counts = numbers("--ranks", options.ranks, "1,2,3,4", fewest=2)
    if options.steps < 4:
        raise ConfigError(f"--steps: must be at least 4, not {options.steps}")
    return counts


if __name__ == "__main__":
    sys.exit(main())
