"""Compare runs on several numbers of ranks, with known hashes, or with another machine, bit for bit: dpcnn verify"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpcnn.base import startup
from dpcnn.base.files import write_file
from dpcnn.base.new_files import JSON, check_replaceable
from dpcnn.base.numerics import check
from dpcnn.base.options import flag_of
from dpcnn.cli import DONE, FAULT, Parser, run_command
from dpcnn.errors import ConfigError
from dpcnn.evidence import golden, receipts
from dpcnn.evidence.jobs import numbers
from dpcnn.evidence.proof import OWN, Training, differences, run_all, table, verdict
from dpcnn.flags import Kinds, add_config_flags, complete, given, refuse_others
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import check_starter, usual_launcher

MOST_KILLS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all runs agree, 1 if not."""
    return run_command(command, make_parser, argv, SerialComm(), needed_numerics)


def needed_numerics(options: Namespace) -> str:
    """The numerics that this process needs: it computes the golden hashes itself."""
    return getattr(options, "numerics", "portable") if options.golden is not None else startup.numerics


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn verify", description=__doc__)
    parser.add_argument("--ranks", help="the numbers of ranks to compare (default 1,2,3,4)")
    parser.add_argument("--steps", type=int, help="the steps of each run (default 20)")
    parser.add_argument(
        "--launcher",
        help='command that starts the ranks, before "-n RANKS" (default mpirun; srun in an allocation without mpirun)',
    )
    parser.add_argument("--receipt", type=Path, help="file for the results (default verify.json)")
    parser.add_argument(
        "--golden",
        nargs="*",
        metavar="TRAINING",
        help="compare these short trainings with the table of the package, on one rank, with portable numerics "
        "(default: all of them; a wrong name lists them)",
    )
    parser.add_argument(
        "--write-golden", action="store_true", help="for developers: with --golden, write the table of the package"
    )
    parser.add_argument(
        "--against", type=Path, metavar="RECEIPT", help="compare with a receipt from another machine, in all steps"
    )
    parser.add_argument(
        "--kill",
        type=int,
        metavar="N",
        help="also run N times on the last number of ranks, and kill a random rank, which the others survive; "
        "needs Open MPI 5 (default 0)",
    )
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the options to start from (default simple-cnn)")
    add_config_flags(parser, hidden=OWN)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Verify what the command line asks for; ``comm`` is this process alone."""
    if options.write_golden and options.golden is None:
        raise ConfigError("--write-golden: give it with --golden")
    asked = "golden" if options.golden is not None else "against" if options.against else RUNS
    complete(options, OPTIONS, asked, RUNS)
    if options.golden is not None:
        refuse_others(options, ("numerics", "imports"), "with --golden, whose trainings have their own")
        return verify_golden(options)
    return verify_against(options) if options.against else verify_ranks(options)


RUNS = "runs"  # on several numbers of ranks, for which there is no flag
OPTIONS: Kinds = {
    "ranks": ("1,2,3,4", (RUNS, "against")),
    "steps": (20, (RUNS,)),
    "launcher": (usual_launcher(), (RUNS, "against")),
    "receipt": (Path("verify.json"), (RUNS,)),
    "kill": (0, (RUNS,)),
    "against": (None, (RUNS, "against")),
    "recipe": (None, (RUNS, "against")),  # the check of --against says more
}


def verify_ranks(options: Namespace) -> int:
    """Run the same training on several numbers of ranks, kill and resume one more run, and compare all."""
    counts = _counts(options)
    check_starter("verify", options.launcher)
    if not 0 <= options.kill <= MOST_KILLS:
        raise ConfigError(f"--kill: must be from 0 to {MOST_KILLS}, not {options.kill}")
    check_replaceable("--receipt", options.receipt, JSON)
    for name in [name for name in OWN if name in given(options)]:
        raise ConfigError(
            f"{flag_of(name)}: has no effect, because dpcnn verify sets it; give --steps, or leave it out"
        )
    training = Training(options.launcher, options.recipe, given(options), options.steps)
    outcomes = run_all(training, counts, options.kill, partial(print, flush=True))
    different = differences(outcomes)
    print(table(outcomes, different))
    write_file(options.receipt, json.dumps(receipts.receipt(outcomes, different), indent=1).encode() + b"\n")
    print(f"{verdict(different)}; receipt: {options.receipt}")
    return FAULT if any(different) else DONE


def verify_golden(options: Namespace) -> int:
    """Compare short trainings with the table of the package, or write the table."""
    check(needed_numerics(options))
    found = golden.train_all(options.golden, partial(print, flush=True))
    if options.write_golden:
        golden.write_table(found)
        print(f"{golden.TABLE}: the hashes of {len(found)} trainings, {startup.numerics}")
        return DONE
    entry = golden.read_table().get(startup.numerics, {})
    different = golden.compare(entry.get("runs", {}), found)
    print(golden.report(different, entry))
    return FAULT if any(different.values()) else DONE


def verify_against(options: Namespace) -> int:
    """Repeat the training of a receipt on this machine, and compare the hashes of all parameters after each step."""
    counts = numbers("--ranks", options.ranks, "1,2")
    if options.recipe or given(options).keys() - {"data", "imports"}:
        raise ConfigError(
            "--against: the receipt has the options of its training; of them, only --data and --import may be given"
        )
    known = receipts.read_receipt(options.against)
    check_starter("verify", options.launcher)
    outcomes = receipts.repeat(known, counts, options.launcher, given(options).get("data"), partial(print, flush=True))
    different, odd = receipts.compare(known, outcomes)
    print(table(outcomes, different))
    if odd:
        print(f"the numerics differ from those on {known.host}: {'; '.join(odd)}")
    print(verdict(different))
    return FAULT if any(different) else DONE


def _counts(options: Namespace) -> list[int]:
    counts = numbers("--ranks", options.ranks, "1,2,3,4", fewest=2)
    if options.steps < 4:
        raise ConfigError(f"--steps: must be at least 4, not {options.steps}")
    return counts


if __name__ == "__main__":
    sys.exit(main())
