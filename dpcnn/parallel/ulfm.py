"""Ranks that survive, by ULFM: the fault tolerance of Open MPI, started by ``mpirun --with-ft ulfm``."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from dpcnn.base import output
from dpcnn.parallel.mpi import Communicator, by_node, split_nodes
from dpcnn.parallel.survival import Surviving

LAST_MESSAGES = 0.1  # seconds in which the last messages of a process arrive


class UlfmCommunicator(Surviving, Communicator):
    """All ranks of a job; it stands for those that live.

    MPI_Finalize may wait for the dead, so it is never called: :meth:`leave` ends the process.
    """

    def __init__(self, mpi: Any) -> None:
        Surviving.__init__(self)
        Communicator.__init__(self, mpi, mpi.COMM_WORLD)
        comm, node = self.transact(lambda: by_node(mpi, self._comm))
        self._become(comm)
        self._node, self.members = Communicator(mpi, node), range(self.size)
        self.deaths.clear()  # who died before ranks had numbers has none

    def commit(self, well: bool) -> bool:
        try:
            return bool(self._comm.Agree(int(well)))
        except self._mpi.Exception:
            return False

    def revoke(self) -> None:
        for comm in (self, self._node):
            if comm and comm._comm != self._mpi.COMM_SELF:
                with suppress(self._mpi.Exception):
                    comm._comm.Revoke()
        for request in self._requests:  # MPI writes into their memory until they have ended
            with suppress(self._mpi.Exception):
                request.Wait()
        self._requests.clear()

    def shrink(self) -> list[int]:
        # a rank that dies before the nodes are known leaves a communicator that can't be asked for them
        before, one_node = self.members, self._node is not None and self._node.size == self.size
        while True:
            self.revoke()
            try:
                comm = self._comm.Shrink()
            except self._mpi.Exception:
                continue
            self._become(comm)
            if self.commit(self._find_node(one_node)):
                return [number for number in before if number not in self.members]

    def _find_node(self, one_node: bool) -> bool:
        """Find the ranks that share memory with this one, again; returns whether that went well.

        Args:
            one_node: all ranks do. Then no other communicator is needed: Open MPI 5.0.11 can crash if a rank dies in
                the moment in which the others make one.
        """
        if self._node and self._node._comm == self._mpi.COMM_SELF:
            return True
        try:
            comm = self._comm if one_node else split_nodes(self._mpi, self._comm)
        except self._mpi.Exception:
            return False
        self._node = Communicator(self._mpi, comm)
        return True

    def _become(self, comm: Any) -> None:
        """Stand for the ranks of another communicator of MPI, each of which this one has, too."""
        old, members = self._comm, self.members
        self.members = [members[rank] for rank in _ranks_in(old, comm)]
        self._comm, self.rank, self.size = comm, comm.rank, comm.size
        self._tag = 0  # a death may have come before some ranks had begun to receive, and after others had
        if old != self._mpi.COMM_WORLD:
            old.Free()

    def finalize(self) -> None:
        """Nothing: the end of MPI is that of the process."""

    def leave(self, status: int) -> NoReturn:
        self.depart()
        os._exit(status)

    def depart(self) -> None:
        with suppress(self._mpi.Exception):
            self._comm.Agree(1)
        output.flush()
        time.sleep(LAST_MESSAGES)

    def abort(self, status: int) -> NoReturn:
        self._comm = self._mpi.COMM_WORLD
        super().abort(status)


def _ranks_in(old: Any, new: Any) -> Sequence[int]:
    """For each rank of a communicator of MPI, its number in an older one."""
    group = new.Get_group()
    ranks: Sequence[int] = group.Translate_ranks(list(range(new.size)), old.Get_group())
    return ranks
