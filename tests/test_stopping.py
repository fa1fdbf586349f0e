"""When a run stops: signals, and the end of the job's time, on a clock of the test's own."""

import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from commands import training
from conftest import start, train
from metrics import events, timeless

from dpcnn.cli import run
from dpcnn.cluster.stopping import RESERVE, TOGETHER, Stop, handler, job_end, seconds_of
from dpcnn.errors import ConfigError
from dpcnn.parallel.comm import SerialComm


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_signals_that_come_together_are_one_request_and_a_later_one_ends_at_once():
    clock, ended = Clock(), []
    stop = Stop(None, clock)
    handle = handler(stop, ended.append)
    assert not stop.due()
    handle(signal.SIGTERM, None)
    clock.now += TOGETHER
    handle(signal.SIGUSR1, None)
    assert stop.due() and stop.reason == "by SIGTERM" and not ended
    clock.now += 0.5
    handle(signal.SIGINT, None)
    assert ended == [130]


def test_ctrl_c_in_a_single_process_ends_it_without_mpi_abort_and_its_messages(monkeypatch):
    monkeypatch.setattr("dpcnn.cli._escape_what_the_terminal_lacks", lambda: None)  # it takes pytest's streams

    class Alone(SerialComm):
        def abort(self, status):
            pytest.fail("MPI_Abort of Open MPI prints lines of its own")

    def interrupted(comm):
        raise KeyboardInterrupt

    assert run(interrupted, Alone()) == 130


def test_it_stops_while_there_is_time_for_a_step_and_a_checkpoint():
    clock = Clock()
    stop = Stop(100, clock)
    for _ in range(3):
        clock.now += 2  # steps of 2 s
        assert not stop.due()
    stop.saved(3)
    clock.now += 10  # an evaluation, say: 10 s since the last look
    assert not stop.due()
    clock.now = 1100 - (10 + 2 * 3 + RESERVE) - 0.1
    stop._looked = clock.now - 1
    assert not stop.due()
    clock.now += 0.2
    assert stop.due() and stop.reason == "the job's time ends in 21 s"


def test_before_the_first_checkpoint_some_time_is_kept_for_it():
    clock = Clock()
    stop = Stop(50, clock)
    stop._looked = clock.now = 1050 - (0.1 * 50 + RESERVE) - 0.1
    assert not stop.due()
    clock.now += 0.05
    stop.due()
    clock.now += 0.1
    assert stop.due()


def test_a_clock_that_is_set_while_a_run_trains_does_not_stop_it(monkeypatch):
    stop, now = Stop(3600), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400)
    assert not stop.due()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("2-00:00:10", 2 * 86400 + 10), ("0:01", 1)],
)
def test_times_as_slurm_writes_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "1-12", "1h", "-5", "1:2:3:4"])
def test_other_times_are_refused(text):
    with pytest.raises(ConfigError, match="--walltime: expected minutes"):
        seconds_of(text)
    with pytest.raises(ConfigError, match="--time: expected minutes"):
        seconds_of(text, "--time")


def test_whose_word_on_the_job_s_end_counts():
    assert job_end({}, 50) is None
    assert job_end({"PBS_WALLTIME": "600"}, 50) == 650
    both = {"SLURM_JOB_END_TIME": "1700000000", "PBS_WALLTIME": "600"}
    assert job_end(both, 50) == 1700000000
    assert job_end({**both, "DPCNN_JOB_END": "1600000000"}, 50) == 1600000000
    assert job_end(both, 50, "1:00") == 110
    with pytest.raises(ConfigError, match="PBS_WALLTIME=1h: expected seconds; unset it, or give --walltime"):
        job_end({"PBS_WALLTIME": "1h"}, 50)


@pytest.mark.slow
def test_a_run_out_of_time_stops_and_goes_on_by_the_same_command(quick, tmp_path):
    straight, folder = tmp_path / "straight", tmp_path / "run"
    flags = [*quick, "--epochs", "40", "--model", "small-cnn", "--keep", "1"]
    assert training(*flags, "--out", straight).status == 0
    statuses = []
    while not statuses or statuses[-1] == 75:
        env = {"DPCNN_JOB_END": str(int(time.time() + 6))} if not statuses else {}
        result = train(2 + len(statuses), *flags, "--resume", "auto", "--out", folder, env=env)
        statuses.append(result.status)
        assert result.status == 0 or ": the job's time ends in " in result.out.splitlines()[-1], result.err
        assert len(statuses) < 5
    assert statuses[0] == 75 and statuses[-1] == 0
    assert timeless(folder) == timeless(straight)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_python_still_loads_stops_after_the_first_step(quick, tmp_path, number):
    job = start(2, "-m", "dpcnn.train", *quick, "--epochs", "500", "--out", tmp_path / "run")
    while not (ready := [pid for pid in job.ranks() if holds(pid, number)]):
        assert job.process.poll() is None
        time.sleep(0.002)
    os.kill(ready[0], number)
    result = job.wait()
    assert result.status == 75, result.err
    assert events(tmp_path / "run")[-1].get("step", 1) < 30


def holds(pid: int, number: int) -> bool:
    """Whether a process keeps a signal for later."""
    with suppress(OSError):  # it has ended
        blocked = re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        return bool(blocked and int(blocked.group(1), 16) >> (number - 1) & 1)
    return False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resume", "auto"], "--resume auto: give the run's folder: --out"),
        (["--walltime", "soon"], "--walltime: expected minutes, M:S, H:M:S or D-H:M:S, not 'soon'"),
    ],
)
def test_mistakes(quick, flags, message, tmp_path):
    result = training(*quick, *flags, ranks=2, cwd=tmp_path)
    assert result.status == 2 and result.errors == [f"dpcnn: error: {message}"]
    assert json.dumps(os.listdir(tmp_path)) == "[]"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-ranks", "0"], "--min-ranks: must be at least 1, not 0"),
        (["--min-ranks", "3"], "--min-ranks: 3, but this job has 2 in all; start more ranks, or give a smaller number"),
        (["--min-ranks", "2", "--survive", "no"], "--min-ranks: has no effect with --survive no; leave it out"),
    ],
)
def test_numbers_of_ranks_that_no_death_can_leave_are_refused(quick, tmp_path, flags, message):
    result = training(*quick, *flags, "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and message in result.errors[0] and not (tmp_path / "run").exists()
