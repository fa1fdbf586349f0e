"""Memory that all ranks of a node see: one copy a node, whatever the number of its ranks.

An anonymous file in memory (Linux's memfd), opened by the other ranks through /proc. It needs no
help from the MPI library, is not bounded by the size of /dev/shm, and has no name that a crash
could leave behind.
"""

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.errors import LaunchError
from dpcnn.parallel.comm import Alone


def shared_array(node: Alone, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of zeros that is the same memory on every rank of ``node``.

    The memory is reserved here, so that a lack of it is an error now and not a bus error later.

    Raises:
        LaunchError: on every rank, where the memory is not to be had or can't be shared.
    """
    count = int(np.prod(shape))
    size = max(count * np.dtype(dtype).itemsize, 1)
    if node.size == 1:
        return np.zeros(shape, dtype)
    path, descriptor = "", -1
    with node.together():
        if node.rank == 0:
            path, descriptor = _reserve(size)
    path = node.broadcast_obj(path)
    with node.together():
        if node.rank:
            descriptor = _open(path)
    memory = mmap.mmap(descriptor, size)
    os.close(descriptor)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _reserve(size: int) -> tuple[str, int]:
    descriptor = os.memfd_create("dpcnn")
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        os.close(descriptor)
        raise LaunchError(
            f"this node has no {size / 1e6:.0f} MB of memory to share between its ranks ({error.strerror}): "
            "ask for more memory a node"
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
