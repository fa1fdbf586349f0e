"""Measure speed, also against PyTorch and JAX: dpcnn bench, also under mpirun"""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpcnn.base.files import write_file
from dpcnn.base.new_files import JSON, check_replaceable
from dpcnn.base.options import flag_of
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.evidence.comparison import Jobs, scaling
from dpcnn.evidence.jobs import MOST, numbers
from dpcnn.evidence.layers import measure_layers
from dpcnn.evidence.measure import measure_job
from dpcnn.evidence.recovery import survive
from dpcnn.evidence.versus import PEERS, versus
from dpcnn.flags import Kinds, add_config_flags, complete, given, override, refuse_others
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import check_starter, usual_launcher
from dpcnn.training.resume import recipe_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    starts_jobs = any(word.startswith(("--scaling", "--versus", "--survive")) for word in words)
    numerics = None if starts_jobs else lambda options: measured(options).numerics
    return run_command(command, make_parser, argv, SerialComm() if starts_jobs else None, numerics)


def measured(options: Namespace) -> Config:
    """The configuration that is measured."""
    return override(recipe_of(options), options)


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn bench", description=__doc__)
    parser.add_argument("--steps", type=int, help="steps of each measurement (default 50)")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--exchange-only", action="store_true", help="measure only the exchanges")
    kinds.add_argument(
        "--layers",
        action="store_true",
        dest="by_layer",  # "layers" is a value of the config
        help="measure each layer alone, its limit, and PyTorch's time if it is installed",
    )
    kinds.add_argument("--scaling", metavar="RANKS", help="start jobs with these numbers of ranks, such as 1,2,4")
    kinds.add_argument(
        "--versus",
        choices=PEERS,
        help="compare with PyTorch DDP (a process per rank), or with a process of PyTorch or JAX (a thread per rank)",
    )
    kinds.add_argument(
        "--survive",
        action="store_true",
        help="in turns, start jobs that survive the death of ranks, and jobs that do not; kill ranks",
    )
    parser.add_argument(
        "--compile", action="store_true", help="with --versus torch: try torch.compile too, which takes long"
    )
    parser.add_argument("--ranks", type=int, help="number of ranks for --versus and --survive (default 2)")
    parser.add_argument("--batches", help="batch sizes per rank for --versus (default 32,64,128)")
    parser.add_argument("--rounds", type=int, help="rounds of the jobs in turns, or of --layers (default 7)")
    parser.add_argument("--launcher", help="command that starts the ranks, as in dpcnn verify")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the options to start from (default simple-cnn)")
    add_config_flags(parser, hidden=IDLE)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Run the measurement of the command line on every rank of ``comm``."""
    with comm.fail_together():
        config = measured(options)
        counts, batches = check(options)
        if options.by_layer and comm.size > 1:
            raise ConfigError("--layers: start it without mpirun; it measures one process")
        if comm.rank == 0 and options.json:
            check_replaceable("--json", options.json, JSON)
    say = partial(print, file=sys.stderr, flush=True)
    jobs = Jobs(options.launcher, options.recipe, given(options), config, options.steps, options.rounds, say)
    if options.scaling:
        result, text = scaling(jobs, counts)
    elif options.by_layer:
        result, text = measure_layers(jobs)
    elif options.versus:
        result, text = versus(jobs, options.versus, options.ranks, batches, options.compile)
    elif options.survive:
        result, text = survive(jobs, options.ranks)
    else:
        result, text = measure_job(comm, config, options.steps, options.exchange_only, say)
    with comm.fail_together():
        if comm.rank == 0:
            print(text)
            if options.json:
                write_file(options.json, json.dumps(result, indent=1).encode() + b"\n")
    return DONE


JOBS = "scaling", "versus", "survive"
JOB = "job"  # the measurement of this job, for which there is no flag
EXCHANGE = "exchange-only"
OPTIONS: Kinds = {
    "steps": (50, (JOB, EXCHANGE, *JOBS)),
    "ranks": (2, ("versus", "survive")),
    "batches": ("32,64,128", ("versus",)),
    "rounds": (7, (*JOBS, "layers")),
    "launcher": (usual_launcher(), JOBS),
    "compile": (False, ("versus",)),
}


IDLE = "test", "max_steps", "monitor", "patience", "checkpoint_every", "drift_check_every", "keep"
"""Options of a training that no measurement uses: a measurement has its own steps, and no evaluation or checkpoint."""

OF_SIZE = "data", "model", "init_from", "imports", "numerics"
"""Options of a training that an exchange depends on."""


def check(options: Namespace) -> tuple[list[int], list[int]]:
    """Check the options; return the numbers of ``--scaling`` and of ``--batches``."""
    single = "layers" if options.by_layer else EXCHANGE if options.exchange_only else JOB
    complete(options, OPTIONS, next((kind for kind in JOBS if getattr(options, kind)), single), JOB)
    for name in ("steps", "ranks", "rounds"):
        if not 1 <= getattr(options, name) <= MOST:
            raise ConfigError(f"--{name}: must be from 1 to {MOST}, not {getattr(options, name)}")
    for name in IDLE:
        if name in options:
            raise ConfigError(f"{flag_of(name)}: has no effect on a measurement; leave it out")
    if options.exchange_only:
        refuse_others(options, OF_SIZE, f"with --{EXCHANGE}, which depends on the number of parameters alone")
    for name in {"batch", "microbatch"} & given(options).keys() if options.versus else ():
        raise ConfigError(f"--{name}: --versus takes --batches, and each is one microbatch per rank; leave it out")
    scaled, batches = (numbers(f"--{name}", getattr(options, name) or "1", "1,2,4") for name in ("scaling", "batches"))
    for name in JOBS:
        if getattr(options, name):
            check_starter(f"--{name}", options.launcher)
    for name, values in (("scaling", scaled), ("batches", batches)):
        if len(set(values)) < len(values):
            raise ConfigError(f"--{name}: expected different numbers, not {getattr(options, name)}")
    if options.compile and options.versus == "jax":
        raise ConfigError("--compile: it is torch.compile; JAX always compiles, so leave it out with --versus jax")
    if options.survive and options.ranks < 2:
        raise ConfigError(f"--ranks: --survive needs at least 2, not {options.ranks}")
    return scaled, batches


if __name__ == "__main__":
    sys.exit(main())
