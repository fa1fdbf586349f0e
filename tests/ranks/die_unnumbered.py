"""Run by ranks under mpirun --with-ft ulfm: the last one dies before the ranks know their nodes and their numbers."""

import os
import signal
import time

import dpcnn.parallel.start
from dpcnn.parallel import ulfm

real = ulfm.by_node


def die(mpi, comm):
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)  # so that the others know of it
    return real(mpi, comm)


ulfm.by_node = die
comm = dpcnn.parallel.start.world()
assert comm.allgather_obj(comm.rank) == list(range(comm.size)) and comm.node().size == comm.size == 2
print(f"rank {comm.rank}: {__name__} is content", flush=True)
comm.leave(0)
