"""What a rank tells of itself: the phase and the step that it is in, whether it moves, and where its main thread is."""

import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dpcnn.base.timing import Timer
from dpcnn.cluster.datagrams import BETWEEN, END, PHASES, START, Message

FRAMES = 15  # of a stack, the innermost: from the training loop to MPI


class Pulse:
    """The pulse of a rank; its main thread makes it.

    Attributes:
        at_the_end: whether the rank ends MPI, or has.
        done: whether it has, and a child process watches it from now on.
    """

    def __init__(self) -> None:
        self.at_the_end = self.done = False
        self._main, self._read_here = threading.get_ident(), 0
        self._timer: Timer | None = None
        self._step: Callable[[], int] = lambda: 0

    def follow(self, timer: Timer, step: Callable[[], int]) -> None:
        """From here on, tell the phase and the step of a training."""
        self._timer, self._step = timer, step

    def message(self) -> Message:
        """What the rank says now."""
        if self._timer is None:
            return Message(START, 0, self._read_by_others(), self.done)
        phase = END if self.at_the_end else self._timer.phase
        return Message(phase if phase in PHASES else BETWEEN, self._step(), self._timer.turns, self.done)

    def stack(self) -> str:
        """Where the main thread is, without its source lines: the file system may hang."""
        frame = sys._current_frames().get(self._main)
        lines = [
            f"  {'/'.join(Path(frame.f_code.co_filename).parts[-3:])}, line {line}, in {frame.f_code.co_name}"
            for frame, line in traceback.walk_stack(frame)
        ]
        return "\n".join(reversed(lines[:FRAMES]))

    def _read_by_others(self) -> int:
        """Bytes that this process has read, but for those read here: what moves while a run starts up. Linux only."""
        with suppress(OSError):
            text = Path("/proc/self/io").read_text(encoding="ascii")
            found = int(text.split()[1]) - self._read_here
            self._read_here += len(text)
            return found
        return 0
