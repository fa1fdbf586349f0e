"""Replace a dead rank by MPI_Comm_spawn; the optional argument is the delay in seconds of a second death."""

import os
import sys
import threading
import time

from mpi4py import MPI


def die() -> None:
    os.kill(os.getpid(), 9)


parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    world = MPI.COMM_WORLD.Dup()
    world.Set_errhandler(MPI.ERRORS_RETURN)
    world.Barrier()
    time.sleep(0.05)
    if world.rank == 2:
        die()
    try:
        world.Barrier()
    except MPI.Exception:
        world.Revoke()
    left = world.Shrink()
    if len(sys.argv) > 1 and left.rank == 1:
        threading.Timer(float(sys.argv[1]), die).start()
    parent = left.Spawn(sys.executable, [__file__], maxprocs=1)
    team = parent.Merge(high=False)
else:
    team = parent.Merge(high=True)
print("rank", team.rank, "of", team.allreduce(1), flush=True)
time.sleep(0.2)
os._exit(0)
