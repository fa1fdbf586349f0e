"""Reasons to stop a run before its end: a signal, or the end of the job's time."""

import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from dpcnn.base.fields import digits
from dpcnn.errors import ConfigError

BY_SCHEDULERS = (signal.SIGUSR1, signal.SIGTERM)
"""Signals by which a scheduler or a batch script requests a stop."""

SIGNALS = (*BY_SCHEDULERS, signal.SIGINT)
"""All signals that request a stop."""

TOGETHER = 2.0
"""Seconds within which signals count as one: launchers and schedulers send the same request more than once."""

RESERVE = 5.0
"""Seconds that are reserved for the end of the job, after the last checkpoint."""

SAVING = 20.0
"""Seconds that the first checkpoint may take."""


class Stop:
    """Decides for one rank whether the run must stop at the next step.

    Attributes:
        reason: the reason for a stop; empty if there is none.
    """

    def __init__(self, left: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """``left``: the seconds until the end of the job's time; None: no end. ``clock`` must not jump."""
        self.reason = ""
        self._clock, self._looked = clock, clock()
        self._end = None if left is None else self._looked + left
        self._asked: float | None = None
        self._gap, self._save = 0.0, 0.0  # the longest so far
        self._first_save = SAVING if left is None else min(SAVING, 0.1 * left)

    def ask(self, why: str) -> bool:
        """Request a stop at the next step.

        Returns:
            Whether this is a second request, some time after the first.
        """
        now = self._clock()
        self.reason = self.reason or why
        self._asked = now if self._asked is None else self._asked
        return now - self._asked > TOGETHER

    def due(self) -> bool:
        """Whether the run must stop now. Each call, between two steps, also measures the time since the last one.

        The remaining time must suffice for another such interval, which may include an evaluation, and a checkpoint.
        """
        now = self._clock()
        self._gap, self._looked = max(self._gap, now - self._looked), now
        if self._end is not None and not self.reason:
            left = self._end - now
            if left < self._gap + (2 * self._save or self._first_save) + RESERVE:
                self.reason = f"the job's time ends in {max(0, left):.0f} s"
        return bool(self.reason)

    def saved(self, seconds: float) -> None:
        """A checkpoint has taken so many seconds; the next one may take twice the longest time."""
        self._save = max(self._save, seconds)


def job_end(environment: Mapping[str, str], started: float, walltime: str = "") -> float | None:
    """The end of the job's time, in seconds since 1970; None if it is unknown.

    Args:
        environment: DPCNN_JOB_END and Slurm's SLURM_JOB_END_TIME are such times; PBS_WALLTIME and OAR's
            OAR_JOB_WALLTIME_SECONDS are seconds, counted here from ``started``.
        started: the start of this process.
        walltime: the user's limit, counted from ``started``; it takes precedence over the environment.

    Raises:
        ConfigError: a value is not understood.
    """
    if walltime:
        return started + seconds_of(walltime)
    for name, since in (
        ("DPCNN_JOB_END", 0.0),
        ("SLURM_JOB_END_TIME", 0.0),
        ("PBS_WALLTIME", started),
        ("OAR_JOB_WALLTIME_SECONDS", started),
    ):
        if value := environment.get(name):
            seconds = digits(value)
            if seconds is None:
                raise ConfigError(f"{name}={value[:40]}: expected seconds; unset it, or give --walltime")
            return since + seconds
    return None


def seconds_of(walltime: str, flag: str = "--walltime") -> int:
    """The seconds of a time in Slurm's format: M, M:S, H:M:S, or D-H:M:S; ``flag`` is for the message.

    Raises:
        ConfigError: it has another format, or is 0.
    """
    match = re.fullmatch(r"(?:(?:(\d{1,9})-)?(\d{1,9}):(?=\d+:))?(\d{1,9})(?::(\d{1,9}))?", walltime)
    days, hours, minutes, seconds = (int(word or 0) for word in match.groups()) if match else (0, 0, 0, 0)
    total = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    if not total:
        raise ConfigError(f"{flag}: expected minutes, M:S, H:M:S or D-H:M:S, not {walltime[:40]!r}")
    return total


def hold() -> None:
    """Hold a scheduler's request until :func:`listen`: a run that is still loading stops after its first step.

    A Ctrl-C is not held: it ends a run that has not started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, BY_SCHEDULERS)


def listen(stop: Stop, end: Callable[[int], Any]) -> None:
    """From now on, signals request a stop."""
    for number in SIGNALS:
        signal.signal(number, handler(stop, end))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ignore() -> None:
    """From now on, ignore signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def handler(stop: Stop, end: Callable[[int], Any]) -> Callable[..., None]:
    """A signal handler that requests a stop; a later, second request calls ``end`` with 128 + the signal's number."""

    def handle(number: int, frame: Any) -> None:
        if stop.ask(f"by {signal.Signals(number).name}"):
            end(128 + number)

    return handle
