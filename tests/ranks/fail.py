"""Run under mpirun: one rank fails in a chosen way while the others wait for it."""

import os
import sys

from dpcnn.cli import run
from dpcnn.errors import DataError

how, culprit = sys.argv[1], int(sys.argv[2])


def command(comm):
    if how == "together":
        with comm.fail_together():
            if comm.rank == culprit:
                raise DataError("shard 3 is damaged")
    if comm.rank == culprit:
        if how == "exception":
            raise RuntimeError("something unforeseen")
        if how == "alone":
            raise DataError("shard 4 is damaged")
        if how == "exit":
            sys.exit(5)
        if how == "killed":
            os.kill(os.getpid(), 9)
    comm.barrier()
    return 0


sys.exit(run(command))
