"""Train a network: mpirun -n 4 python -m dpcnn.train"""

import sys
from collections.abc import Sequence

from dpcnn.cluster.stopping import hold


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    hold()
    from dpcnn.cli import run  # not before: on a cluster, loading all this may take long
    from dpcnn.reporting.figures import draw_curves
    from dpcnn.training.resume import wanted_numerics
    from dpcnn.training.run import train, training_parser

    numerics = (lambda: wanted_numerics(training_parser().parse_args())) if argv is None else None
    return run(lambda comm: train(comm, argv, draw_curves), numerics=numerics)


if __name__ == "__main__":
    sys.exit(main())
