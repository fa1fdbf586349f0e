"""Ranks for real: the same checks under mpirun at every size, and how a job ends when one rank fails."""

from pathlib import Path

import pytest
from conftest import ROOT, many, run

RANKS = Path(__file__).parent / "ranks"
PROGRAMS = "check_comm", "check_exchange"


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def check(ranks: int, **env: str) -> None:
    """Run the programs in one job, to start fewer."""
    path = {"PYTHONPATH": f"{ROOT}:{RANKS}"}
    result = run(ranks, "-c", f"import {', '.join(PROGRAMS)}", str(ranks), env=path | env)
    assert result.status == 0, result.err
    for program in PROGRAMS:
        assert result.out.count(f": {program} is content") == ranks


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_on_every_number_of_ranks(ranks):
    check(ranks)


NODES = ["1,1", "1,2", "3,1", "2,2", "1,2,1", "2,1,1", "1,1,2", "1,1,1,1", "3,2,2", "1,5,1"]


@pytest.mark.parametrize("nodes", ["2,1", "1,1,1", "1,3", *map(slow, NODES[: many(len(NODES))])])
def test_on_pretended_nodes_of_every_uneven_shape(nodes):
    check(sum(map(int, nodes.split(","))), DPCNN_PRETEND_NODES=nodes)


@pytest.mark.parametrize("culprit", [slow(0), 2])
def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(culprit):
    result = run(3, RANKS / "fail.py", "exception", str(culprit))
    assert result.status not in (0, 2, 75)
    assert f"dpcnn: rank {culprit} of 3 failed:" in result.err
    assert 'raise RuntimeError("something unforeseen")' in result.err


@pytest.mark.parametrize("culprit", [slow(0), 2])
def test_a_mistake_that_all_learn_of_is_one_line(culprit):
    result = run(3, RANKS / "fail.py", "together", str(culprit))
    assert result.status == 2
    assert result.errors == ["dpcnn: error: shard 3 is damaged"]
    assert "Traceback" not in result.err


def test_a_mistake_that_one_rank_meets_alone_ends_the_job_too():
    result = run(3, RANKS / "fail.py", "alone", "1")
    assert result.status == 2
    assert result.errors == ["dpcnn: error: shard 4 is damaged"]


def test_a_rank_that_leaves_ends_the_job():
    result = run(3, RANKS / "fail.py", "exit", "1")
    assert result.status not in (0, 2, 75)


def test_a_rank_that_is_killed_ends_the_job():
    result = run(3, RANKS / "fail.py", "killed", "1")
    assert result.status not in (0, 2, 75)
