"""Survival: when a rank dies, the others go on without it, in the same job.

The work of a job is a sequence of *transactions*. All living ranks do an action, in memory that nobody needs if it
fails; then one agreement, which no death can divide, says on all of them whether it counts. If it does not, the ranks
that live form a smaller communicator and do the action again.

What a rank has seen in an action counts for nothing before the agreement: an operation in which a peer dies may fail on
some ranks and succeed on others, and it may "succeed" with wrong data. So any exception may come from a death. It is an
error of the program only if nobody has died.

Bland et al., "Post-failure recovery of MPI communication capability" (2013), describes revoke, shrink and agree. Open
MPI has them (ULFM) if it is started by ``mpirun --with-ft ulfm``.
"""

import os
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from dpcnn.base.timing import Timer
from dpcnn.errors import DpcnnError
from dpcnn.parallel.comm import Death, SerialComm

T = TypeVar("T")

ENABLED = "OMPI_MCA_mpi_ft_enable"
"""Environment variable that ``mpirun --with-ft ulfm`` sets for its ranks."""

SETTINGS = {
    "OMPI_MCA_coll": "^han,adapt",  # these hide the death of a rank on another node
    "OMPI_MCA_mpi_preconnect_mpi": "1",  # a first connection during a recovery can wait for the dead
    "OMPI_MCA_mpi_add_procs_cutoff": "1024",
}
"""Settings of Open MPI without which a job does not survive every death."""


class Surviving(SerialComm):
    """Ranks that go on when one of them dies: what that needs, besides the operations of a communicator.

    Attributes:
        deaths: oldest first; the same on all ranks, but for times.
    """

    def __init__(self) -> None:
        self.survives = True
        self._rebuild: list[Callable[[], None]] = []
        self.deaths: list[Death] = []

    def transact(self, action: Callable[[], T], timer: Timer | None = None) -> T:
        if not self.survives:
            return super().transact(action, timer)
        since, dead = 0.0, list[int]()
        self.repeated = False
        while True:
            error: DpcnnError | None = None
            fault: Exception | None = None
            try:
                for make in self._rebuild * self.repeated:
                    make()
                result = action()
            except DpcnnError as raised:
                error, fault = (raised, None) if raised.agreed else (None, raised)
            except Exception as raised:
                fault = raised
            if fault:
                self.revoke()
            with timer("waiting") if timer else nullcontext():
                committed = self.commit(fault is None)
            if committed:
                break
            since = since or time.monotonic()
            lost = self.shrink()
            if fault and not lost:
                raise fault  # nobody has died: it is this rank's own
            dead += lost
            self.repeated = True
        if dead:
            self.deaths.append(Death(dead, self.size, time.monotonic() - since))
        if error:
            raise error
        return result

    def on_death(self, make: Callable[[], None]) -> None:
        if self.survives:
            self._rebuild.append(make)

    def forget(self) -> None:
        self._rebuild.clear()
        self.deaths.clear()

    @abstractmethod
    def revoke(self) -> None:
        """End all operations of these ranks: each rank that waits in one gets an exception."""

    @abstractmethod
    def commit(self, well: bool) -> bool:
        """Whether all these ranks live and are well; the same on each that lives."""

    @abstractmethod
    def shrink(self) -> list[int]:
        """Go on as the ranks that live, in the same order.

        Returns:
            The numbers, at the start of the job, of those that have died; the same on each that lives.
        """


def survival(comm: SerialComm) -> str:
    """Describe whether the ranks of a job survive the death of one; if not, why, and what to do about it."""
    if comm.survives:
        return "survives the death of ranks"
    if os.environ.get(ENABLED):
        return "the death of a rank ends the job: --survive no"
    if comm.library.startswith("Open MPI v5"):
        return "the death of a rank ends the job; with mpirun --with-ft ulfm, the job survives it"
    return f"the death of a rank ends the job: {comm.library} can't survive it; only Open MPI 5 can"
