"""Which ranks keep a job from going on: a function of what each has reported, and when.

A rank whose reports stay away is *silent*: its process has stopped, or its host has. A rank that still reports but
does not leave its phase is *stuck*. The ranks that wait for it don't move either, but report that they wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dpcnn.cluster.datagrams import BETWEEN, END, START, Message

MAY_WAIT = (START, BETWEEN, END, "waiting")
"""The phases in which a rank may be waiting for others."""

SILENT, STUCK, ENDING = "silent", "stuck", "ending"
_TOLD = {SILENT: "has sent no heartbeat for", STUCK: "has made no progress for", ENDING: "has not ended for"}


@dataclass
class Report:
    """What is known of a rank; times are in seconds of one clock.

    Attributes:
        phase: the last that it reported; so are ``step`` and ``turns``.
        beat: when the last report came.
        moved: when a report last differed from the one before.
        done: it is through the end of MPI, and watched in another way.
        ended: its watch has ended; it may be at work, or not.
    """

    host: str
    beat: float
    moved: float
    phase: str = START
    step: int = 0
    turns: int = -1
    done: bool = False
    ended: bool = False

    def take(self, message: Message, now: float) -> None:
        """Take up what the rank says."""
        self.beat = now
        if message.turns != self.turns:
            self.moved = now
        self.phase, self.step, self.turns = message.phase, message.step, message.turns
        self.done |= message.done
        self.ended |= message.ended


class Verdict(NamedTuple):
    """A rank that keeps the job from going on: how, and since how many seconds."""

    rank: int
    how: str
    seconds: float

    def told(self, report: Report) -> str:
        """The verdict, with that rank's report, in words."""
        return (
            f"rank {self.rank} on {report.host} {_TOLD[self.how]} {self.seconds:.1f} s: "
            f"{report.phase}, after step {report.step}"
        )


def judge(reports: Sequence[Report], now: float, timeout: float) -> list[Verdict]:
    """The ranks that have kept the job from going on for longer than ``timeout``: silent ones, or else stuck ones."""
    return silent(reports, now, timeout) or stuck(reports, now, timeout)


def silent(reports: Sequence[Report], now: float, timeout: float) -> list[Verdict]:
    """The ranks that have not reported for longer than ``timeout``, and should have."""
    return [
        Verdict(rank, SILENT, now - report.beat)
        for rank, report in enumerate(reports)
        if now - report.beat > timeout and not (report.done or report.ended)
    ]


def stuck(reports: Sequence[Report], now: float, timeout: float) -> list[Verdict]:
    """The ranks that have not moved for longer than ``timeout``, and for which the others wait.

    As long as any rank moves, or may, those that may be waiting for it are not to blame. Where none does and all may
    be waiting, all are that are not done.
    """
    still = [
        Verdict(rank, STUCK, now - report.moved)
        for rank, report in enumerate(reports)
        if now - report.moved > timeout and not report.ended
    ]
    watched = [verdict for verdict in still if not reports[verdict.rank].done]
    working = [verdict for verdict in watched if reports[verdict.rank].phase not in MAY_WAIT]
    return working or (watched if len(still) == len(reports) else [])
