"""The watch over the ranks: stopped, stuck, slow and suspended ones, for real; who is to blame, by hand."""

import os
import signal
import time

import pytest
from conftest import run, start
from test_failures import until_step

from dpcnn.parallel.comm import Alone
from dpcnn.parallel.watch import Seen, Watch, addresses

TIMEOUT = 3.0


@pytest.fixture(scope="module")
def endless(quick):
    return [*quick, "--epochs", "3000", "--model", "small-cnn", "--no-curves", "--stall-timeout", str(TIMEOUT)]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named_and_the_job_ends(endless, tmp_path, victim):
    job = start(3, "-m", "dpcnn.train", *endless, "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    os.kill(job.ranks()[victim], signal.SIGSTOP)
    stopped = time.monotonic()
    result = job.wait(20)
    assert time.monotonic() - stopped < TIMEOUT + 2 and result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {os.uname().nodename} has sent no heartbeat for " in line and ", after step " in line
    assert victim == 0 or ("rank 0 on" in result.err and "in fit" in result.err), "others tell where they are"
    assert not job.pids()


STUCK = """
import sys, time
from dpcnn import train
from dpcnn.trainer import Trainer

def loiter(trainer, *arguments, step=Trainer.train_step):
    if trainer.comm.rank == 1 and trainer.cursor.step == 5:
        with trainer.spans("data"):
            time.sleep(SECONDS)
    return step(trainer, *arguments)

Trainer.train_step = loiter
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_rank_that_is_stuck_is_named_with_its_stack(endless, tmp_path):
    result = run(3, "-c", STUCK.replace("SECONDS", "100"), *endless, "--out", tmp_path / "run")
    assert result.status == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert "rank 1 on " in line and "has made no progress for 3" in line and ": data, after step 5;" in line
    assert "rank 0" not in line and "rank 2" not in line and "in loiter" in result.err


STOPPED = """
import atexit, os, signal, sys
from dpcnn import train
from dpcnn.parallel.comm import Communicator

def stop(comm, finalize=Communicator.finalize):
    finalize(comm)
    if comm.rank == VICTIM:
        MOMENT(os.kill, os.getpid(), signal.SIGSTOP)

Communicator.finalize = stop
at_once = lambda function, *arguments: function(*arguments)
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("victim", "moment"), [(0, "at_once"), (1, "at_once"), (0, "atexit.register")])
def test_a_rank_that_stops_after_the_end_of_mpi_is_named(quick, tmp_path, victim, moment):
    flags = [*quick, "--max-steps", "3", "--stall-timeout", "2", "--no-curves", "--out", tmp_path / "run"]
    job = start(2, "-c", STOPPED.replace("VICTIM", str(victim)).replace("MOMENT", moment), *flags)
    result = job.wait(20)
    assert result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {os.uname().nodename} has " in line and f"rank {1 - victim} on " not in line
    assert not job.pids()


def test_a_file_system_that_hangs_is_told_of_rank_0_alone(endless, tmp_path):
    job = start(3, "-m", "dpcnn.train", *endless, "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    for name in ("metrics.jsonl", "log.txt"):  # who opens a pipe without a reader waits for ever
        os.mkfifo(tmp_path / "pipe")
        os.replace(tmp_path / "pipe", tmp_path / "run" / name)
    result = job.wait(20)
    assert result.status == 1
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert "rank 0 on " in line and "has made no progress for 3" in line and ": report, after step " in line
    assert "rank 1" not in line and "rank 2" not in line and "in record" in result.err


def test_a_slow_rank_is_reported_and_not_killed(endless, tmp_path):
    flags = [*endless, "--max-steps", "10", "--out", tmp_path / "run"]
    result = run(3, "-c", STUCK.replace("SECONDS", "2.7"), *flags)
    assert result.status == 0, result.err
    (warning,) = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert "rank 1 on " in warning and warning.endswith(": data, after step 5; all wait for it")


def test_a_job_that_was_suspended_goes_on(endless, tmp_path):
    job = start(2, "-m", "dpcnn.train", *endless, "--max-steps", "300", "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    ranks = job.ranks()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in ranks:
            os.kill(pid, number)
        time.sleep(TIMEOUT + 1 if number == signal.SIGSTOP else 0)
    result = job.wait(60)
    assert result.status == 0, result.err


def watch(*ranks: tuple[str, float, float]) -> Watch:
    """A watch that has seen these ranks: phase, seconds since a heartbeat, and since progress."""
    made, now = Watch(Alone(), 0, print), time.monotonic()
    made._seen = [Seen("here", phase, 7, 0, now - beat, now - moved) for phase, beat, moved in ranks]
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
    ],
)
def test_who_is_to_blame(ranks, culprits):
    assert [(rank, how) for rank, how, _ in watch(*ranks)._culprits(3)] == culprits


def test_a_rank_that_is_ready_to_leave_is_not_to_blame():
    made = watch(("end", 0, 9), ("end", 0, 9))
    made._seen[0].ready = True
    assert [rank for rank, _, _ in made._culprits(3)] == [1]


def test_foreign_messages_are_passed_over():
    made = Watch(Alone(), 0, print)
    made._seen, made._token = [Seen("here")] * 2, "secret"
    for message in ({}, {"rank": "1"}, {"rank": 7}, {"rank": -1}, {"rank": [1]}):
        made._note_of_rank(message, ("127.0.0.1", 1))
    assert made._peers == {}


def test_own_addresses():
    found = addresses()
    assert "127.0.0.1" in found and found[-1].startswith("127.")


def test_reading_is_progress_while_a_run_starts_up(tmp_path):
    made = Watch(Alone(), 0, print)
    before = made._own()["turns"]
    assert made._own()["turns"] == before, "what the watch reads itself does not count"
    (tmp_path / "file").write_bytes(bytes(1000))
    (tmp_path / "file").read_bytes()
    assert made._own()["turns"] == before + 1000
