"""The watch over the ranks, in real jobs: stopped, stuck, slow and suspended ranks, and attackers."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import attacker
import pytest
from conftest import many, run, start
from metrics import last_step, until_step
from threads import run_ranks

from dpcnn.cluster.datagrams import Message
from dpcnn.cluster.links import Links
from dpcnn.cluster.verdict import Report
from dpcnn.cluster.watch import Watch
from dpcnn.parallel.comm import SerialComm

TIMEOUT = 3.0

ENDED = (1, 9)
"""Exit status of a job that the watch has ended; 9 from MPICH's launcher, which has killed the other ranks."""


@pytest.fixture(scope="module")
def endless(quick):
    return [*quick, "--epochs", "3000", "--model", "small-cnn", "--no-curves", "--stall-timeout", str(TIMEOUT)]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("victim", [slow(0), 2])
def test_a_stopped_rank_is_named_and_the_job_ends(endless, tmp_path, victim):
    job = start(3, "-m", "dpcnn.train", *endless, "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    os.kill(job.ranks()[victim], signal.SIGSTOP)
    result = job.wait()
    assert result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {os.uname().nodename} has sent no heartbeat for " in line and ", after step " in line
    assert victim == 0 or ("rank 0 on" in result.err and "in fit" in result.err), "others tell where they are"
    assert not job.pids()


STUCK = """
import sys, time
from dpcnn import train
from dpcnn.training.trainer import Trainer

def loiter(trainer, *arguments, step=Trainer.train_step):
    if trainer.comm.rank == 1 and trainer.progress.step == 5:
        with trainer.timer("data"):
            time.sleep(SECONDS)
    return step(trainer, *arguments)

Trainer.train_step = loiter
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_rank_that_is_stuck_is_named_with_its_stack(endless, tmp_path):
    result = run(3, "-c", STUCK.replace("SECONDS", "100"), *endless, "--out", tmp_path / "run")
    assert result.status in ENDED
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert "rank 1 on " in line and "has made no progress for " in line and ": data, after step 5;" in line
    assert "rank 0" not in line and "rank 2" not in line and "in loiter" in result.err


STOPPED = """
import atexit, os, signal, sys
from dpcnn import train
from dpcnn.parallel.mpi import Communicator
from dpcnn.cluster.watch import Watch

def then_stop(function):
    def both(self, *arguments):
        function(self, *arguments)
        if getattr(self, "comm", self).rank == VICTIM:
            HOW(os.kill, os.getpid(), signal.SIGSTOP)
    return both

at_once = lambda function, *arguments: function(*arguments)
AFTER = then_stop(AFTER)
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("victim", "after", "how", "told"),
    [
        (0, "Communicator.finalize", "at_once", "sent no heartbeat"),
        slow(1, "Communicator.finalize", "at_once", "sent no heartbeat"),
        slow(0, "Watch._leave_child", "at_once", "sent no heartbeat"),
        slow(0, "Watch.close", "atexit.register", "not ended"),
    ],
)
def test_a_rank_that_stops_after_the_end_of_mpi_is_named(quick, tmp_path, victim, after, how, told):
    program = STOPPED.replace("VICTIM", str(victim)).replace("AFTER", after).replace("HOW", how)
    flags = [*quick, "--max-steps", "3", "--stall-timeout", "2", "--no-curves", "--out", tmp_path / "run"]
    job = start(2, "-c", program, *flags)
    result = job.wait()
    assert result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {os.uname().nodename} has {told} for " in line and f"rank {1 - victim} on " not in line
    assert not job.pids()


@pytest.mark.parametrize(("seconds", "status", "said"), [(600, 0, ""), (0.1, -signal.SIGKILL, "a line")])
def test_a_process_is_ended_that_does_not_end_in_time(seconds, status, said):
    code = f"import time; from dpcnn.cluster.watch import end_after; end_after({seconds}, 'a line'); time.sleep(LAST)"
    program = code.replace("LAST", "600" if said else "0")
    result = run(0, "-c", program)
    assert (result.status, result.err) == (status, said), "and its child has closed the pipes of its output"


HANGING = """
import sys, time
from dpcnn import train
from dpcnn.runs.console import Console
from dpcnn.runs.folder import RunFolder

def hang(folder, event, append=RunFolder.append_event):
    if event["step"] >= 5:
        Console.say = RunFolder.append_event = lambda *arguments: time.sleep(100)
        RunFolder.append_event(folder, event)
    append(folder, event)

RunFolder.append_event = hang
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_file_system_that_hangs_is_told_of_rank_0_alone(endless, tmp_path):
    result = run(3, "-c", HANGING, *endless, "--out", tmp_path / "run")
    assert result.status in ENDED
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert "rank 0 on " in line and "has made no progress for " in line and ": report, after step " in line
    assert "rank 1" not in line and "rank 2" not in line and "in write_record" in result.err


DYING = """
import sys, threading, time
from dpcnn import train
from dpcnn.cluster.watch import Watch
from dpcnn.training.trainer import Trainer

def follow(watch, spans, step, follow=Watch.follow):
    def fail():
        if watch.comm.rank == VICTIM and step() >= 5 and threading.current_thread() is not threading.main_thread():
            raise MemoryError("none left")
        return step()
    follow(watch, spans, fail)

def slowly(trainer, *arguments, step=Trainer.train_step):
    time.sleep(0.8 * (trainer.progress.step >= 5))
    return step(trainer, *arguments)

Watch.follow, Trainer.train_step = follow, slowly
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_watch_that_ends_says_so_and_the_job_goes_on(quick, tmp_path, victim):
    flags = [*quick, "--max-steps", "9", "--no-curves", "--stall-timeout", "2", "--out", tmp_path / "run"]
    result = run(3, "-c", DYING.replace("VICTIM", str(victim)), *flags)
    assert result.status == 0, result.err
    (line,) = [line for line in result.err.splitlines() if "watch" in line]
    where = f"rank {victim} on {os.uname().nodename}: MemoryError: none left"
    assert line == f"warning: the watch over the ranks has ended ({where}): nobody watches for hangs any more"
    assert "hang: " not in result.err


@pytest.mark.slow
def test_a_slow_rank_is_reported_and_not_killed(endless, tmp_path):
    flags = [*endless, "--stall-timeout", "6", "--max-steps", "10", "--out", tmp_path / "run"]
    result = run(3, "-c", STUCK.replace("SECONDS", "4"), *flags)
    assert result.status == 0, result.err
    (warning,) = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert "rank 1 on " in warning and warning.endswith(": data, after step 5; all wait for it")


SLOW = """
import sys, time
from dpcnn.train import main
from dpcnn.training.trainer import Trainer

def slowly(trainer, *arguments, step=Trainer.train_step):
    time.sleep(0.1)
    return step(trainer, *arguments)

Trainer.train_step = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_job_that_was_suspended_goes_on(endless, tmp_path):
    job = start(2, "-c", SLOW, *endless, "--max-steps", "30", "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    ranks = job.ranks()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in ranks:
            os.kill(pid, number)
        time.sleep(TIMEOUT + 1 if number == signal.SIGSTOP else 0)
    result = job.wait()
    assert result.status == 0, result.err


SURVIVING = """
import sys, time
from contextlib import suppress
from dpcnn.cluster import watch
from dpcnn.cluster.links import Links
from dpcnn.parallel.comm import SerialComm

class Surviving(SerialComm):
    size, members, survives = 2, (0, 1), True

    def allgather_obj(self, value):
        return [value] * 2

lost = []
watch.connect = lambda comm, hosts: (Links([]), lost)
sys.stderr = None

def no_heartbeats(comm, made):
    lost.append(1)
    made.renew()
    lost.clear()

def the_last_survivor(comm, made):
    comm.size = 1
    made.renew()

def a_watch_that_was_closed(comm, made):
    made.close()

def a_thread_that_failed(comm, made):
    made.follow(0, None)

for seconds, case in enumerate([no_heartbeats, the_last_survivor, a_watch_that_was_closed, a_thread_that_failed], 10):
    case(comm := Surviving(), watch.Watch(comm, seconds / 10, print))

def a_death(comm, hosts):
    raise OSError("a rank has died")

watch.connect = a_death
with suppress(OSError):
    watch.Watch(Surviving(), 1.4, print)
time.sleep(3)
"""


def test_a_rank_without_a_watch_is_not_killed_by_its_child():
    result = run(0, "-c", SURVIVING)
    assert (result.status, result.err) == (0, ""), "the line has the seconds of the case"


class First(SerialComm):
    size, other = 2, "node3"

    def allgather_obj(self, value):
        return ["node1", self.other]


def test_where_heartbeats_do_not_arrive_a_line_says_that_nobody_watches(monkeypatch):
    monkeypatch.setattr("dpcnn.cluster.watch.connect", lambda comm, hosts: (Links([]), [1]))
    said = []
    made = Watch(First(), 600, said.append)
    assert made.warning == "warning: heartbeats from node3 don't reach node1 by UDP: nobody watches for hangs"
    assert not said, "the training says it when its log is open"
    made.renew()
    assert not said, "after a death, the log has the line already"
    made.comm.other = "node4"
    made.renew()
    assert said == ["warning: heartbeats from node4 don't reach node1 by UDP: nobody watches for hangs"]
    made.close()


def test_where_rank_0_may_open_too_few_files_the_line_says_that(monkeypatch):
    monkeypatch.setattr("dpcnn.cluster.links._room_for", lambda sockets: False)

    def warning(comm):
        made = Watch(comm, 600, print)
        made.close()
        return made.warning

    why = "rank 0 may open too few files for heartbeats (raise the limit: ulimit -n 1024)"
    assert run_ranks([2], warning)[0] == f"warning: {why}: nobody watches for hangs"


def test_a_stack_from_another_rank_can_t_steer_the_terminal():
    made = Watch(SerialComm(), 0, print)
    made._reports = [Report("here", 0.0, 0.0)] * 2
    made._take(SimpleNamespace(peer=1, send=lambda answer: None), Message(text="in fit\n\x1b[2Jgone"))
    assert made._stacks == {1: "in fit\n\\x1b[2Jgone"}


def test_reading_is_progress_while_a_run_starts_up(tmp_path):
    made = Watch(SerialComm(), 0, print)
    before = made.pulse.message().turns
    assert made.pulse.message().turns == before, "what the watch reads itself does not count"
    (tmp_path / "file").write_bytes(bytes(1000))
    (tmp_path / "file").read_bytes()
    assert made.pulse.message().turns == before + 1000


def udp_ports(job) -> list[int]:
    """The UDP ports of a job's ranks, once all have some, and the addresses that they are bound to."""
    while not (ranks := job.ranks()) or len(found := bound(ranks)) < 2 * (len(ranks) - 1):
        assert job.process.poll() is None
    assert {address for address, _ in found} == {"0100007F"}, "127.0.0.1 alone"
    return [port for _, port in found]


def bound(pids: list[int]) -> set[tuple[str, int]]:
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(entry))
            except OSError:  # closed since
                continue
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return {(row[1][:8], int(row[1][9:], 16)) for row in rows if f"socket:[{row[9]}]" in sockets}


@contextmanager
def attack(ports):
    """A block during which these ports are attacked in every way that is allowed here, beside the job's own work."""
    niceness = {"flood": "19", "replay": "0"} if attacker.may_spoof() else {"flood": "19"}
    helpers = [
        subprocess.Popen(
            ["nice", "-n", nice, sys.executable, attacker.__file__, kind, *map(str, ports)], stdout=subprocess.PIPE
        )
        for kind, nice in niceness.items()
    ]
    try:
        assert [helper.stdout.readline() for helper in helpers] == [b"attacking\n"] * len(helpers)
        yield
        assert [helper.poll() for helper in helpers] == [None] * len(helpers), "each attacks to the end"
    finally:
        for helper in helpers:
            helper.kill()
            helper.communicate()


@pytest.mark.slow
def test_a_job_under_attack_goes_on_until_it_is_asked_to_stop(endless, tmp_path):
    job = start(3, "-m", "dpcnn.train", *endless, "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    with attack(udp_ports(job)):
        until_step(tmp_path / "run", last_step(tmp_path / "run") + 50, job)
        os.kill(job.ranks()[0], signal.SIGUSR1)
        result = job.wait()
    assert result.status == 75 and "hang: " not in result.err, result.err
    assert "nobody watches" not in result.out + result.err


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_rank_is_named_under_attack(endless, tmp_path, victim):
    job = start(3, "-m", "dpcnn.train", *endless, "--out", tmp_path / "run")
    until_step(tmp_path / "run", 5, job)
    with attack(udp_ports(job)):
        time.sleep(1)
        os.kill(job.ranks()[victim], signal.SIGSTOP)
        result = job.wait()
    assert result.status != 0
    (line,) = [line for line in result.err.splitlines() if line.startswith("dpcnn: hang: ")]
    assert f"rank {victim} on {os.uname().nodename} has sent no heartbeat for " in line


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2][: many(2)])
def test_a_stopped_rank_is_killed_and_the_others_go_on(quick, tmp_path, victim):
    flags = [*quick, "--epochs", "20", "--model", "small-cnn", "--no-curves", "--stall-timeout", str(TIMEOUT)]
    job = start(3, "-m", "dpcnn.train", *flags, "--out", tmp_path / "run", flags=["--with-ft", "ulfm"])
    until_step(tmp_path / "run", 5, job)
    os.kill(job.ranks()[victim], signal.SIGSTOP)
    result = job.wait()
    assert result.status == 0, result.err
    assert f"rank {victim} on {os.uname().nodename} has sent no heartbeat for {TIMEOUT} s, and is killed" in result.err
    assert "2 ranks continue" in result.out and not job.pids()
