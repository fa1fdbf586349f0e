"""Memory that all ranks of a node share: one copy per node, for any number of ranks.

An anonymous file in memory (Linux's memfd), opened by the other ranks through /proc. It needs no
help from the MPI library, is not bounded by the size of /dev/shm, and has no name that a crash
could leave behind.
"""

import errno
import mmap
import os
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.errors import LaunchError
from dpcnn.parallel.comm import SerialComm


def shared_array(node: SerialComm, shape: Shape, dtype: Any) -> Array:
    """An array of zeros in memory that all ranks of ``node`` share.

    The memory is reserved here: a shortage raises an error now, instead of a bus error later.

    Raises:
        LaunchError: on every rank, if the memory is not available or can't be shared.
    """
    count = int(np.prod(shape))
    size = max(count * np.dtype(dtype).itemsize, 1)
    if node.size == 1:
        return np.zeros(shape, dtype)
    path, descriptor = "", -1
    with node.fail_together():
        if node.rank == 0:
            path, descriptor = _reserve(size)
    path = node.broadcast_obj(path)
    with node.fail_together():
        if node.rank:
            descriptor = _open(path)
    memory = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def share_or_part(comm: SerialComm) -> str | None:
    """Test whether the ranks of each node can share memory; if any node fails, no ranks share memory.

    Then each rank has its own copy of the shared arrays, and everything goes over MPI, with the
    same results. An example is one container per rank.

    Returns:
        On every rank: None, or a warning with the reason.
    """
    reason = None
    try:
        shared_array(comm.node(), (1,), np.uint8)
    except LaunchError as error:
        reason = str(error)
    problem: str | None = next(filter(None, comm.allgather_obj(reason)), None)
    if problem is None:
        return None
    comm.live_apart()
    return f"warning: {problem}; each rank now has its own copy of data and parameters, and everything goes over MPI"


def _reserve(size: int) -> tuple[str, int]:
    try:
        descriptor = os.memfd_create("dpcnn")
    except OSError as error:
        raise LaunchError(f"this system provides no memory to share between ranks ({error.strerror})") from None
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        hint = (
            "raise the limit on file sizes: ulimit -f" if error.errno == errno.EFBIG else "ask for more memory per node"
        )
        raise LaunchError(
            f"this node has no {size / 1e6:.0f} MB of memory to share between its ranks ({error.strerror}): {hint}"
        ) from None
    return f"/proc/{os.getpid()}/fd/{descriptor}", descriptor


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR)
    except OSError as error:
        raise LaunchError(
            f"the ranks of this node can't share memory ({path}: {error.strerror}): "
            "start them in one container, as one user"
        ) from None
