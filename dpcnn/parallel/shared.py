"""Memory that all ranks of a node share: one copy per node, for any number of ranks.

An anonymous file in memory (Linux's memfd), opened by the other ranks through /proc. It needs no
help from the MPI library, is not bounded by the size of /dev/shm, and has no name that a crash
could leave behind.
"""

import errno
import mmap
import os
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.errors import LaunchError
from dpcnn.parallel.comm import SerialComm


class Memory(NamedTuple):
    """The shared file of a node's first rank.

    Attributes:
        path: leads other processes to the file, if they see the process of its rank under the same number.
        device, inode: identify the file.
    """

    path: str
    device: int
    inode: int


def shared_array(node: SerialComm, shape: Shape, dtype: Any) -> Array:
    """An array of zeros in memory that all ranks of ``node`` share.

    If there are several ranks, the memory is reserved here: a shortage raises an error now, instead of a bus error
    later. A single rank gets an ordinary array.

    Raises:
        LaunchError: on every rank of ``node``, if the memory is not available or can't be shared. Other nodes do not
            know: where there may be any, call this in a block of ``fail_together`` of all ranks.
    """
    count = int(np.prod(shape))
    size = max(count * np.dtype(dtype).itemsize, 1)
    if node.size == 1:
        return np.zeros(shape, dtype)
    found, descriptor = None, -1
    try:
        with node.fail_together():
            if node.rank == 0:
                descriptor = _reserve(size)
                found = _describe(descriptor)
        found = node.broadcast_obj(found)
        with node.fail_together():
            if node.rank:
                descriptor = _open(Memory(*found))
        with node.fail_together():
            memory = _map(descriptor, size)
    finally:
        if descriptor >= 0:
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


def _reserve(size: int) -> int:
    """The descriptor of a new file in memory."""
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
            f"this node has no {ceil(size / 1e6):,} MB of memory to share between its ranks ({error.strerror}): {hint}"
        ) from None
    return descriptor


def _describe(descriptor: int) -> Memory:
    status = os.fstat(descriptor)
    return Memory(f"/proc/{os.getpid()}/fd/{descriptor}", status.st_dev, status.st_ino)


def _open(memory: Memory) -> int:
    """The descriptor of the file of another rank.

    In another container, the same path can lead to any file of another process.
    """
    try:
        descriptor = os.open(memory.path, os.O_RDWR)
    except OSError as error:
        raise _apart(memory, str(error.strerror)) from None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) != memory[1:]:
        os.close(descriptor)
        raise _apart(memory, "another file")
    return descriptor


def _apart(memory: Memory, reason: str) -> LaunchError:
    return LaunchError(
        f"the ranks of this node can't share memory ({memory.path}: {reason}): start them in one container, as one user"
    )


def _map(descriptor: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, size)
    except OSError as error:
        raise LaunchError(
            f"a rank can't map {ceil(size / 1e6):,} MB of shared memory ({error.strerror}): raise its limit on address "
            "space: ulimit -v"
        ) from None
