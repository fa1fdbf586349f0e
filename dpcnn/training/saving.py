"""The saving of a run: rank 0 writes its checkpoints in a thread, and training continues.

The thread reads the vectors of the committed state. They stay as they are until the writing has ended: the state
*holds* them (:mod:`dpcnn.training.state`), and steps use the other two sets. A small network has only two sets, so the
ranks wait for the end of the writing before the next step.

What the ranks do together, they do in two actions of the trainer. The first one collects the vectors and starts the
thread. The second one waits for the end of the thread, and raises its error on all ranks. It comes before the next
checkpoint, so before an evaluation is recorded, and before the end of the run. Whether the thread has ended does not
matter before that, so the ranks exchange nothing about it during the steps.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.dataset import Samples
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import Checkpoint, read, vector_names
from dpcnn.runs.folder import RunFolder
from dpcnn.training.state import State
from dpcnn.training.team import Team

LARGE = 1 << 24
"""Parameters from which on a state has a third set of vectors."""


def has_spare(run: RunFolder, size: int) -> bool:
    """Whether the state of a run of ``size`` parameters has a third set of vectors."""
    return run.kept and size >= LARGE


def vectors(config: Config, run: RunFolder, size: int) -> int:
    """The number of vectors (size,) in the state of a run, in all its sets."""
    return (3 if has_spare(run, size) else 2) * (1 + len(vector_names(config)))


class Saving:
    """The saving of a run; every rank has one.

    Attributes:
        due: whether a checkpoint is to be written; the same on all ranks.
        seconds: which the last checkpoint that this rank has written took.
    """

    def __init__(self, comm: SerialComm, run: RunFolder, stop: Stop) -> None:
        """``stop`` learns how long a checkpoint takes."""
        self.due, self.seconds = False, 0.0
        self._comm, self._run, self._stop = comm, run, stop
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def continues(self, state: State) -> bool:
        """Whether steps may be taken while a checkpoint is written: there is memory, and the rank that writes lives."""
        return state.spare and state.holder in self._comm.members

    def begin(self, team: Team, samples: Samples, since: float) -> Callable[[], None]:
        """Let rank 0 write a checkpoint in a thread, once all see the same; return the function that commits this.

        Args:
            samples: of the training.
            since: the time at which the saving has begun, of ``time.monotonic``.

        Raises:
            DriftError: on every rank, if the copies of the parameters differ.
        """
        if not team.one_copy:
            team.compare()
        holder, make = self._comm.members[0], team.checkpoint(samples)
        if make:
            self.join()  # if a death has interrupted this action, the thread of the first attempt may still be writing
            self._error = None
            self._thread = threading.Thread(target=self._write, args=(make, since), name="dpcnn-saving")
            self._thread.start()

        def commit() -> None:
            self.due = False
            team.state.hold(holder)

        return commit

    def _write(self, make: Callable[[], Checkpoint], since: float) -> None:
        try:
            self._run.save(make())
        except BaseException as error:  # the main thread raises it
            self._error = error
        self.seconds = time.monotonic() - since

    def join(self) -> None:
        """Wait for the end of this rank's thread."""
        if self._thread:
            self._thread.join()

    def check(self) -> None:
        """Wait for the end of this rank's thread, if there is one.

        Raises:
            The error of the thread: CheckpointError or DivergenceError. Further calls raise it again, as an action may
            be repeated.
        """
        self.join()
        if self._error:
            raise self._error

    def finish(self, state: State, also: Callable[[], None]) -> Callable[[], None]:
        """The writing has ended: return the function that commits this, and calls ``also``.

        If the rank that wrote has died, its file may be incomplete, and the next rank is to write a checkpoint.
        """
        seconds, lost = self._comm.broadcast_obj(self.seconds), state.holder not in self._comm.members

        def commit() -> None:
            self._stop.saved(seconds)
            state.release()
            self.due = self.due or lost
            also()

        return commit

    def newest(self, otherwise: Path | None) -> Checkpoint | None:
        """The run's newest checkpoint, or the one at ``otherwise``, on rank 0; None elsewhere, and if there is none.

        Raises:
            CheckpointError: on every rank, if it can't be read, or can't be written by this rank's thread.
        """
        with self._comm.fail_together():
            self.check()
            if self._comm.rank == 0 and (path := self._run.newest() or otherwise):
                return read(path)
        return None
