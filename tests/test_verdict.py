"""Which ranks are to blame: of phases, seconds since the last report, and seconds since the last progress."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcnn.cluster.datagrams import PHASES, Message
from dpcnn.cluster.verdict import Report, Verdict, judge

NOW, TIMEOUT = 100.0, 3.0


def report(phase, beat, moved, *flags):
    made = Report("here", NOW - beat, NOW - moved, phase, 7)
    for flag in flags:
        setattr(made, flag, True)
    return made


@pytest.mark.parametrize(
    ("ranks", "culprits"),
    [
        ([("forward", 0, 0), ("waiting", 0, 9)], []),  # slow, but it moves
        ([("forward", 0, 9), ("waiting", 0, 9)], [(0, "stuck")]),
        ([("waiting", 0, 9), ("checkpoint", 0, 9), ("waiting", 9, 9)], [(2, "silent")]),
        ([("waiting", 0, 9), ("waiting", 0, 9)], [(0, "stuck"), (1, "stuck")]),  # for each other
        ([("waiting", 0, 1), ("data", 0, 1)], []),
        ([("start-up", 0, 0), ("start-up", 0, 9)], []),  # rank 0 reads the data
        ([("start-up", 0, 9), ("start-up", 0, 9)], [(0, "stuck"), (1, "stuck")]),
        ([("between phases", 0, 9), ("checkpoint", 0, 9)], [(1, "stuck")]),
        ([("end", 0, 9, "done"), ("end", 0, 9)], [(1, "stuck")]),
        ([("end", 0, 9), ("end", 9, 9, "done")], [(0, "stuck")]),  # rank 1 has left
        ([("end", 0, 9, "done"), ("end", 9, 9, "done"), ("end", 9, 9)], [(2, "silent")]),
        ([("waiting", 0, 9), ("forward", 9, 9, "ended")], []),  # rank 1 may be at work
        ([("checkpoint", 0, 9), ("waiting", 9, 9, "ended")], [(0, "stuck")]),
        ([("waiting", 0, 9), ("waiting", 9, 9, "ended"), ("waiting", 9, 9)], [(2, "silent")]),
    ],
)
def test_who_is_to_blame(ranks, culprits):
    found = judge([report(*rank) for rank in ranks], NOW, TIMEOUT)
    assert [(verdict.rank, verdict.how) for verdict in found] == culprits


seconds = st.floats(0, 10)
reports = st.builds(
    lambda phase, beat, since, flags: report(phase, beat, beat + since, *flags),
    st.sampled_from(PHASES),
    seconds,
    seconds,
    st.sets(st.sampled_from(["done", "ended"])),
)


@given(st.lists(reports, min_size=1, max_size=5))
def test_no_rank_is_to_blame_that_has_moved_or_is_not_watched(ranks):
    for verdict in judge(ranks, NOW, TIMEOUT):
        found = ranks[verdict.rank]
        assert verdict.seconds > TIMEOUT and NOW - found.moved > TIMEOUT and not found.done and not found.ended


@given(st.lists(reports, min_size=1, max_size=5))
def test_a_job_in_which_all_are_watched_and_none_moves_is_not_left_alone(ranks):
    for found in ranks:
        found.moved, found.done, found.ended = NOW - 9, False, False
    assert judge(ranks, NOW, TIMEOUT)


def test_a_report_keeps_the_time_of_the_last_progress():
    made = Report("here", 0.0, 0.0)
    made.take(Message("forward", 1, 5), 1.0)
    made.take(Message("forward", 1, 5, done=True), 2.0)
    made.take(Message("forward", 1, 5), 3.0)
    assert (made.beat, made.moved, made.done, made.ended) == (3.0, 1.0, True, False)


def test_a_verdict_in_words():
    told = Verdict(2, "silent", 3.21).told(report("data", 3.21, 4))
    assert told == "rank 2 on here has sent no heartbeat for 3.2 s: data, after step 7"
