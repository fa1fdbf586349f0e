"""Run under mpirun --with-ft ulfm: rank 2 dies while large messages between the others are half on their way."""

import os
import signal
import time

import numpy as np

import dpcnn.parallel.start

comm = dpcnn.parallel.start.world()
elements = 4_000_000  # more than a transport takes without a handshake


def exchange() -> bool:
    rank, size = comm.rank, comm.size
    runs = [elements * (other != rank) for other in range(size)], [elements * other for other in range(size)]
    received, send = np.zeros((size, elements), np.float32), np.full((size, elements), 1 + rank, np.float32)
    comm.irecv(received, runs)
    comm.isend(send, runs)
    if not comm.repeated:
        time.sleep([0, 1.5, 0.5][rank])  # without calls of MPI, so the message of rank 1 can't go on
        if rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    comm.wait()
    well = all((received[other] == 1 + other).all() for other in range(size) if other != rank)
    return not comm.bitwise_or(not well)


assert comm.transact(exchange) and comm.size == 2
print(f"rank {comm.rank}: {__name__} is content", flush=True)
comm.leave(0)
