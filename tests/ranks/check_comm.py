"""Run under mpirun: every operation of the communicator, in closed forms that hold at any size."""

import sys

import numpy as np

import dpcnn.parallel.start
from dpcnn.errors import DataError
from dpcnn.parallel.shared import shared_array
from dpcnn.parallel.tree import split_evenly

comm = dpcnn.parallel.start.world()
rank, size = comm.rank, comm.size
assert size == int(sys.argv[1])

assert comm.bitwise_or(1 << rank) == (1 << size) - 1
assert comm.broadcast_obj({"from": rank, "text": "Grüße"}) == {"from": 0, "text": "Grüße"}
assert comm.allgather_obj([rank, None]) == [[r, None] for r in range(size)]

array = np.full(5, rank, np.float32)
comm.allreduce(array)
assert (array == size * (size - 1) / 2).all()
array[...] = rank + 7
comm.broadcast(array)
assert (array == 7).all()
assert comm.allgather(np.array([rank, 2.0 * rank])).tolist() == [[r, 2.0 * r] for r in range(size)]

for length in (0, 1, 3, 1000, 100_000):  # also fewer elements than ranks, and messages that need a handshake
    bounds = split_evenly(length, size)
    mine = slice(bounds[rank], bounds[rank + 1])
    whole = np.arange(length, dtype=np.float32)
    gathered = comm.gather_shards(whole[mine].copy(), bounds)
    assert (gathered is None) == (rank > 0)
    assert gathered is None or (gathered == whole).all()
    part = np.full(mine.stop - mine.start, -1, np.float32)
    comm.scatter_shards(gathered, part, bounds)
    assert (part == whole[mine]).all()

    received = np.full((size, mine.stop - mine.start), -1, np.float32)
    runs = np.diff(bounds).tolist(), bounds[:-1]  # every rank its part
    places = [received.shape[1]] * size, [r * received.shape[1] for r in range(size)]
    comm.alltoall(whole + 1000 * rank, runs, received, places)
    for giver, row in enumerate(received):
        assert (row == whole[mine] + 1000 * giver).all()

    for step in range(6):
        ahead, sending = np.full_like(received, -1), whole + 1000 * rank + step
        if (rank + step) % 2:
            comm.barrier()
        comm.irecv(ahead, places)
        if (rank + step) % 2 == 0:
            comm.barrier()
        if step % 3 == 1 and rank % 2:
            continue  # an exception, before the messages leave
        comm.isend(sending, runs)
        if step % 3 == 1:
            continue  # or while they are on their way
        assert comm.bitwise_or(1) == 1, "another operation, while the messages are on their way"
        comm.wait()
        assert (ahead == received + step).all()

node = comm.node()
assert node.allgather_obj(rank) == list(range(rank - node.rank, rank - node.rank + node.size)), "numbered in a row"
shared = shared_array(node, (node.size, 3), np.int64)
assert shared.shape == (node.size, 3) and (shared == 0).all()
node.barrier()
shared[node.rank] = node.rank + 1
node.barrier()
assert (shared.sum(axis=1) == 3 * np.arange(1, node.size + 1)).all(), shared

with comm.fail_together():
    pass
for culprit in range(size):
    caught = None
    try:
        with comm.fail_together():
            if rank >= culprit:
                raise DataError(f"fault on rank {rank}")
    except DataError as error:
        caught = error
    assert caught is not None and str(caught) == f"fault on rank {culprit}" and caught.agreed
caught = None
try:
    with comm.fail_together():
        if rank == size - 1:
            open("/no/such/file")
except Exception as error:
    caught = error
assert str(caught) == "/no/such/file: No such file or directory", caught
comm.barrier()
print(f"rank {rank}: {__name__} is content")
