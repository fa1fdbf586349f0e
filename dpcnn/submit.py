"""Write a batch job for Slurm or PBS: dpcnn submit RUN [--nodes N] [--time T] [-- options of dpcnn train]"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpcnn.base.options import flag_of
from dpcnn.cli import DONE, Parser, parse, run_command
from dpcnn.cluster.batch import SCHEDULERS, BatchJob, environment
from dpcnn.errors import ConfigError
from dpcnn.flags import override
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.folder import RunFolder
from dpcnn.training.resume import recipe_of
from dpcnn.training.run import check_min_ranks, training_parser
from dpcnn.training.setup import idle_ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    own, words = (typed[: typed.index("--")], typed[typed.index("--") + 1 :]) if "--" in typed else (typed, [])
    return run_command(partial(command, words=words), make_parser, own, SerialComm())


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn submit", description=__doc__, epilog="After --: arguments of dpcnn train.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder; if the run exists, it is resumed")
    parser.add_argument("--scheduler", choices=sorted(SCHEDULERS), default="slurm", help="scheduler (default slurm)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (default 1)")
    parser.add_argument(
        "--ranks-per-node", type=int, default=16, metavar="N", help="ranks per node; use one per core (default 16)"
    )
    parser.add_argument("--memory", type=int, default=1, metavar="GB", help="memory per rank (default 1)")
    parser.add_argument(
        "--time", default="1:00:00", help="time limit: minutes, M:S, H:M:S or D-H:M:S (default 1:00:00)"
    )
    parser.add_argument(
        "--starter",
        metavar="COMMAND",
        help="command that starts the ranks (default mpirun --with-ft ulfm with Open MPI 5; otherwise "
        "srun --mpi=pmix, or mpirun under PBS)",
    )
    parser.add_argument("--setup", default=environment(), metavar="LINE", help="shell line that makes dpcnn available")
    parser.add_argument("--send", action="store_true", help="store the script next to the run's folder, and submit it")
    return parser


def command(comm: SerialComm, options: Namespace, words: Sequence[str]) -> int:
    """Print the script, or write it beside the run's folder and submit it; ``words`` are the training's arguments."""
    values = dict(vars(options))
    for name in ("nodes", "ranks_per_node", "memory"):
        if values[name] < 1:
            raise ConfigError(f"{flag_of(name)}: must be at least 1, not {values[name]}")
    warning = check_training(words, comm, values["nodes"] * values["ranks_per_node"])
    send = values.pop("send")
    job = BatchJob(**values, words=words)
    told = f"{job.path}: {job.send()}\n" if send else job.script()
    if warning and not RunFolder(options.run).config.exists():  # a run that exists has its own options
        print(warning, file=sys.stderr)
    print(told, end="")
    return DONE


def check_training(words: Sequence[str], comm: SerialComm, ranks: int) -> str:
    """Check the arguments of the training on so many ranks now, and not when the job has waited for hours.

    Returns:
        A warning if some of the ranks would have nothing to compute; otherwise empty.

    Raises:
        ConfigError: the training would refuse them.
    """
    typed = parse(training_parser, list(words), comm)
    for flag in ("out", "resume"):
        if getattr(typed, flag) is not None:
            raise ConfigError(f"--{flag}: the job gives this itself; name the run's folder before the --")
    check_min_ranks(typed.min_ranks, typed.survive, ranks)
    return idle_ranks(override(recipe_of(typed), typed), ranks)


if __name__ == "__main__":
    sys.exit(main())
