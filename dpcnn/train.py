"""Train a network: mpirun -n 4 python -m dpcnn.train"""

import sys
from collections.abc import Sequence

from dpcnn.stopping import hold


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    hold()
    from dpcnn.training import main as command  # not before: on a cluster, this alone may take long

    return command(argv)


if __name__ == "__main__":
    sys.exit(main())
