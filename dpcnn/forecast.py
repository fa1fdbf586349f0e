"""Predict the speed on more ranks from measurements: dpcnn forecast --fit FILE... --check FILE..."""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dpcnn.base.options import flag_of
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.errors import ConfigError
from dpcnn.evidence.forecast import check, fit_table, fitted, look_ahead, read_job
from dpcnn.evidence.jobs import numbers
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.scaling import draw_scaling


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, SerialComm())


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn forecast", description=__doc__)
    parser.add_argument(
        "--fit", nargs="+", type=Path, required=True, metavar="FILE", help="files of dpcnn bench --json to fit"
    )
    parser.add_argument("--check", nargs="*", type=Path, default=[], metavar="FILE", help="other files to predict")
    parser.add_argument("--ranks-per-node", metavar="N", help="ranks per node in the forecast (default 2)")
    parser.add_argument(
        "--nodes",
        help="numbers of nodes in the forecast (default 1,2,4, .., 2048)",
    )
    parser.add_argument("--latency", type=float, help="seconds per message between nodes, instead of the fitted value")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="STEM",
        help="draw images per second to STEM.png and STEM.svg, or to STEM if that ends with .png or .svg",
    )
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Fit the model, check it, and look ahead."""
    measured = [read_job(path) for path in options.fit]
    trained = [job for job in measured if job.images]
    complete(options, bool(trained))
    nodes, (ranks,) = (
        numbers("--nodes", options.nodes, "1,2,4"),
        numbers("--ranks-per-node", options.ranks_per_node, "2"),
    )
    if options.latency is not None and not 0 <= options.latency < math.inf:
        raise ConfigError(f"--latency: expected seconds, not {options.latency}")
    fit = fitted(measured)
    print(fit_table(fit), "\n")
    jobs = [(path, read_job(path)) for path in options.check]
    if jobs:
        print(check(fit, jobs), "\n")
    if options.latency is not None:
        fit["alpha, network"] = options.latency
    if trained:
        base = max(trained, key=lambda job: (job.size, job.images))
        text, speeds = look_ahead(fit, base, ranks, nodes)
        print(text)
        if options.plot:
            print(draw_scaling(speeds, options.plot, log=True))
    else:
        print(f"no forecast: {MISSING}")
    return DONE


MISSING = "no file of --fit measures a training; give one of dpcnn bench --json without --exchange-only"
AHEAD = {"nodes": "1,2,4,8,16,32,64,128,256,512,1024,2048", "ranks_per_node": "2", "latency": None, "plot": None}
"""The options of a forecast, with their defaults."""


def complete(options: Namespace, trained: bool) -> None:
    """Fill in the defaults of a forecast.

    Args:
        trained: whether there is a training to forecast.

    Raises:
        ConfigError: an option of a forecast is given without a training.
    """
    for name, default in AHEAD.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif not trained:
            raise ConfigError(f"{flag_of(name)}: {MISSING}")


if __name__ == "__main__":
    sys.exit(main())
