"""Traces of all ranks, and the bill for those that others wait for."""

import json
import time

from commands import training

from dpcnn.base.timing import PHASES
from dpcnn.training.times import straggler_bill
from dpcnn.training.trainer import Trainer


def test_a_trace_has_every_phase_of_every_rank_in_its_order(quick, tmp_path):
    result = training(*quick, "--trace", "--out", tmp_path / "run", ranks=[1, 1])
    assert result.status == 0 and f"trace: {tmp_path / 'run' / 'trace.json'}; " in result.out, result.err
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert [name.rpartition(" on ")[0] for name in names] == ["rank 0", "rank 1"]
    for rank in (0, 1):
        mine = [event for event in events if event["ph"] == "X" and event["pid"] == rank]
        assert set(PHASES) - {event["name"] for event in mine} <= {"validation", "recovery"}, "one block, of one rank"
        ends = 0.0
        for event in mine:
            assert event["ts"] >= ends - 0.2 and event["dur"] >= 0  # rounded to 0.1 us
            ends = event["ts"] + event["dur"]
    times = json.loads((tmp_path / "run" / "times.json").read_text())
    traced = sum(event["dur"] for event in mine if event["name"] == "backward") / 1e6
    assert abs(traced - times["ranks"][1]["seconds"]["backward"]) < 0.002


def test_the_rank_that_others_wait_for_is_named(quick, tmp_path, monkeypatch):
    def loiter(trainer, *arguments, step=Trainer.train_step):
        if trainer.comm.rank == 1 and trainer.progress.step == 5:
            with trainer.timer("data"):
                time.sleep(1)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "train_step", loiter)
    result = training(*quick, "--max-steps", "8", "--out", tmp_path / "run", ranks=3)
    assert result.status == 0, result.err
    ranks = json.loads((tmp_path / "run" / "times.json").read_text())["ranks"]
    assert ranks[1]["waited_for"] > 1.0, "two others, most of a second each"
    assert " of the waits for a single rank were for rank 1 (" in result.out


def test_a_bill_by_hand():
    ranks = [
        {"host": "a", "seconds": {"forward": 9.0, "waiting": 1.0}, "waited_for": 0.5},
        {"host": "b", "seconds": {"forward": 10.0, "waiting": 0.0}, "waited_for": 1.5},
    ]
    line = "the ranks were idle for 5.0% of the time"
    assert straggler_bill(ranks) == f"{line}; 75% of the waits for a single rank were for rank 1 (b)"
    for rank in ranks:
        rank["waited_for"] = 0.0
    assert straggler_bill(ranks) == line


def test_the_bill_of_a_run_that_was_complete():
    idle = {"host": "a", "seconds": {"waiting": 0.0}, "waited_for": 0.0}
    assert straggler_bill([idle, idle]) == "the ranks were idle for 0.0% of the time"
