"""Run by 4 ranks under mpirun --with-ft ulfm: two die while messages of the others are on their way, or begin."""

import os
import signal
import time

import numpy as np

import dpcnn.parallel.start

comm = dpcnn.parallel.start.world()
elements = 4_000_000  # more than a transport takes without a handshake


def halves():
    runs = [elements * (other != comm.rank) for other in range(comm.size)], [elements * r for r in range(comm.size)]
    received = np.zeros((comm.size, elements), np.float32)
    comm.irecv(received, runs)
    yield
    comm.isend(np.full_like(received, 1 + comm.rank), runs)
    yield
    comm.wait()
    well = all((received[other] == 1 + other).all() for other in range(comm.size) if other != comm.rank)
    assert not comm.bitwise_or(not well)


def die_before_some_receive():
    if not comm.repeated:
        if comm.rank == 0:
            next(halves())
        if comm.rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.barrier()
    for _ in halves():
        pass


def die_between_messages():
    steps = halves()
    next(steps)
    next(steps)
    if not comm.repeated:
        time.sleep([0, 1.5, 0.5][comm.rank])  # without calls of MPI, so the message of rank 1 can't go on
        if comm.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    next(steps, None)


comm.transact(die_before_some_receive)
assert comm.size == 3
comm.transact(die_between_messages)
assert comm.size == 2
print(f"rank {comm.rank}: {__name__} is content", flush=True)
comm.leave(0)
