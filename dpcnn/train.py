"""Train a network: mpirun -n 4 python -m dpcnn.train"""

import sys
from collections.abc import Sequence

from dpcnn.cluster.stopping import hold


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    hold()
    from dpcnn.cli import run  # not before: on a cluster, loading all this may take long
    from dpcnn.reporting.figures import draw_curves
    from dpcnn.training.run import train

    return run(lambda comm: train(comm, argv, draw_curves))


if __name__ == "__main__":
    sys.exit(main())
