"""Spans: where the time went, each moment counted once."""

import itertools
from types import SimpleNamespace

import pytest

from dpcnn.base import timing
from dpcnn.base.timing import Timer


class Clock:
    """A clock that stands still but for what the test lets pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    return clock


def test_inner_phases_are_taken_out_of_outer_ones(clock):
    timer = Timer()
    for _ in range(2):
        with timer("outer"):
            clock.sleep(0.01)
            with timer("inner"):
                clock.sleep(0.03)
            clock.sleep(0.01)
        clock.sleep(1.0)
    assert timer.seconds == pytest.approx({"outer": 0.04, "inner": 0.06})


def test_an_exception_closes_its_phase(clock):
    timer = Timer()
    with pytest.raises(KeyError), timer("outer"), timer("inner"):
        raise KeyError
    with timer("outer"):
        clock.sleep(0.01)
    assert timer.seconds == pytest.approx({"outer": 0.01, "inner": 0.0})


def test_recorded_stretches_follow_each_other_and_add_up(clock):
    timer = Timer()
    with timer("before"):
        pass
    timer.record(4)
    for _ in range(2):
        with timer("outer"), timer("inner"):
            clock.sleep(0.001)
    assert [phase for phase, _, _ in timer.recorded] == ["outer", "inner", "outer", "outer"], "no more than asked for"
    for (_, _, end), (_, start, _) in itertools.pairwise(timer.recorded[:3]):
        assert start == end
    assert timer.turns == 10 and timer.phase == ""
