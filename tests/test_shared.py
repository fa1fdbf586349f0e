"""Memory that ranks share: a file that only looks like it is refused, and a failure of one rank is one of all."""

import gc
import mmap
import os
import re
from contextlib import suppress
from unittest import mock

import numpy as np
import pytest
from commands import training
from threads import run_ranks

from dpcnn.errors import LaunchError
from dpcnn.parallel import shared


def open_memory() -> list[str]:
    """The descriptors of shared memory that this process has open, those of mappings among them."""
    gc.collect()
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if "memfd:dpcnn" in os.readlink(f"/proc/self/fd/{entry}"):
                found.append(entry)
    return sorted(found)


def attempt(comm):
    try:
        return shared.shared_array(comm.node(), (5,), np.float32)
    except LaunchError as error:
        return str(error)


def test_the_ranks_of_a_node_see_one_array_of_zeros():
    def rank(comm):
        array = shared.shared_array(comm.node(), (2, 3), np.int64)
        assert not array.any()
        comm.barrier()
        array[comm.node().rank] = 1 + comm.rank
        comm.barrier()
        return array.tolist()

    first, second, alone = [[1] * 3, [2] * 3], [[3] * 3, [4] * 3], [[5] * 3, [0] * 3]
    assert run_ranks([2, 2, 1], rank) == [first, first, second, second, alone]


def test_another_file_at_the_same_path_is_refused(tmp_path):
    """As in containers, each with its own numbers of processes."""
    (tmp_path / "file").write_bytes(bytes(4096))
    with open(tmp_path / "file", "r+b") as other:
        path = f"/proc/{os.getpid()}/fd/{other.fileno()}"
        with mock.patch.object(
            shared, "_describe", lambda descriptor: shared.Memory(path, *os.fstat(descriptor)[2:0:-1])
        ):
            found = run_ranks([3], attempt)
    assert len(set(found)) == 1 and re.search(r"can't share memory \(/proc/\d+/fd/\d+: another file\)", found[0])
    assert (tmp_path / "file").read_bytes() == bytes(4096)


def test_a_rank_that_can_not_map_the_memory_fails_with_all_others():
    real, calls, before = mmap.mmap, [], open_memory()

    def refused(descriptor, size):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(12, "Cannot allocate memory")
        return real(descriptor, size)

    with mock.patch.object(shared.mmap, "mmap", refused):
        found = run_ranks([3], attempt)
    assert len(set(found)) == 1 and "a rank can't map 1 MB of shared memory (Cannot allocate memory)" in found[0]
    assert open_memory() == before


def test_ranks_that_can_not_share_are_told_why():
    with mock.patch.object(shared, "_map", side_effect=LaunchError("no memory")):
        warnings = run_ranks([2], shared.share_or_part)
    assert warnings[0] == warnings[1] and warnings[0].startswith("warning: no memory; each rank now has its own copy")


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_an_empty_array(shape):
    assert run_ranks([2], lambda comm: shared.shared_array(comm.node(), shape, np.float32).shape) == [shape] * 2


@pytest.mark.parametrize("number", [2, 4, 6])
def test_a_node_without_memory_ends_the_job_with_a_line(quick, tmp_path, number):
    """Two nodes. Only the second one has memory to share: for images and labels, the state twice, and gradients."""
    real, calls = shared._reserve, []

    def reserve(size):
        calls.append(size)
        if len(calls) == number:
            raise LaunchError("no memory left")
        return real(size)

    with mock.patch.object(shared, "_reserve", reserve):
        result = training(*quick, "--max-steps", "1", "--out", tmp_path / "run", ranks=[1, 2])
    assert len(calls) == number
    assert (result.status, result.err) == (2, "dpcnn: error: no memory left\n")
