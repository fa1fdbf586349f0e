"""Train a network: mpirun -n 4 python -m dpcnn.train"""

import sys
from collections.abc import Sequence

from dpcnn.stopping import hold


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    hold()
    from dpcnn.cli import run  # not before: on a cluster, loading all this may take long
    from dpcnn.training import train

    return run(lambda comm: train(comm, argv))


if __name__ == "__main__":
    sys.exit(main())
