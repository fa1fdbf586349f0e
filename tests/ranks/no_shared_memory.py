"""Run under mpirun: a training on a system whose ranks can't open each other's memory."""

import sys

from dpcnn.errors import LaunchError
from dpcnn.parallel import shared
from dpcnn.train import main


def refuse(memory: shared.Memory) -> int:
    raise LaunchError(f"the ranks of this node can't share memory ({memory.path}: Permission denied)")


shared._open = refuse
sys.exit(main(sys.argv[1:]))
