"""The time of a rank: seconds by phase."""

import time
from collections import defaultdict
from types import TracebackType

STEP_PHASES = ("data", "forward", "backward", "exchange", "optimizer", "waiting")
"""The phases of a step. "waiting" is for other ranks; "exchange" moves and adds numbers."""

PHASES = (*STEP_PHASES, "validation", "checkpoint", "report", "recovery")


class Timer:
    """Measures seconds by phase. If phases are nested, the inner one counts.

    ::

        with timer("exchange"):
            ...

    Attributes:
        seconds: by phase.
        recorded: phase, start and end (of ``time.perf_counter``) of each interval, once :meth:`record` is called.
        turns: the number of starts and ends of phases: there is progress as long as it rises.
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.recorded: list[tuple[str, float, float]] = []
        self.turns = 0
        self._to_record = 0
        self._open: list[str] = []
        self._since = 0.0

    def record(self, stretches: int) -> None:
        """Keep the next ``stretches`` intervals of time as a trace."""
        self._to_record = stretches

    @property
    def phase(self) -> str:
        """The current phase, or ""; other threads may ask for it."""
        return (self._open or [""])[-1]

    def __call__(self, phase: str) -> "Timer":
        self._turn()
        self._open.append(phase)
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._turn()
        self._open.pop()

    def rounded(self) -> dict[str, float]:
        """The seconds of every phase, to milliseconds."""
        return {phase: round(self.seconds[phase], 3) for phase in PHASES}

    def _turn(self) -> None:
        """Add the time since the last turn to the phase that was current."""
        now = time.perf_counter()
        self.turns += 1
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
            if len(self.recorded) < self._to_record:
                self.recorded.append((self._open[-1], self._since, now))
        self._since = now
