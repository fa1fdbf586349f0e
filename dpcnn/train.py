"""Train a network, or resume a run: mpirun -n 4 dpcnn train"""

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dpcnn.cluster.stopping import hold


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    hold()
    started = time.time()
    from dpcnn.cli import run_command  # not before: on a cluster, loading all this may take long
    from dpcnn.training.resume import wanted_numerics
    from dpcnn.training.run import train, training_parser

    command = partial(train, draw=draw_curves, started=started)
    return run_command(command, training_parser, argv, numerics=wanted_numerics)


def draw_curves(runs: Sequence[Path], stem: Path) -> str:
    """Draw the curves of runs; what that needs is loaded only when they end."""
    from dpcnn.reporting import curves

    return curves.draw_curves(runs, stem)


if __name__ == "__main__":
    sys.exit(main())
