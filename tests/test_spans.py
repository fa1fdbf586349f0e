"""Spans: where the time went, each moment counted once."""

import itertools
import time

import pytest

from dpcnn.base.timing import Spans


def test_inner_phases_are_taken_out_of_outer_ones():
    spans, started = Spans(), time.perf_counter()
    for _ in range(2):
        with spans("outer"):
            time.sleep(0.01)
            with spans("inner"):
                time.sleep(0.03)
            time.sleep(0.01)
    passed = time.perf_counter() - started
    assert spans.seconds["inner"] >= 0.06 and spans.seconds["outer"] >= 0.04
    assert sum(spans.seconds.values()) == pytest.approx(passed, abs=0.005)


def test_an_exception_closes_its_phase():
    spans = Spans()
    with pytest.raises(KeyError), spans("outer"), spans("inner"):
        raise KeyError
    with spans("outer"):
        time.sleep(0.01)
    assert spans.seconds["outer"] > 0.01 > spans.seconds["inner"]


def test_recorded_stretches_follow_each_other_and_add_up():
    spans = Spans()
    with spans("before"):
        pass
    spans.record(4)
    for _ in range(2):
        with spans("outer"), spans("inner"):
            time.sleep(0.001)
    assert [phase for phase, _, _ in spans.recorded] == ["outer", "inner", "outer", "outer"], "no more than asked for"
    for (_, _, end), (_, start, _) in itertools.pairwise(spans.recorded[:3]):
        assert start == end
    assert spans.turns == 10 and spans.phase == ""
