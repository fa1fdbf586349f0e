"""A run's folder: who may train in it, and that a folder from somebody else does no harm."""

import os
import shutil
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
from commands import command, training
from conftest import run, start

from dpcnn.config import from_dict
from dpcnn.errors import CheckpointError
from dpcnn.runs.console import Console
from dpcnn.runs.folder import RunFolder, find_checkpoint
from dpcnn.runs.progress import Progress
from dpcnn.training.resume import find_start


@pytest.fixture(scope="module")
def begun(quick, tmp_path_factory) -> Path:
    """A run of 4 steps with two checkpoints."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = ["--model", "mlp", "--max-steps", "4", "--checkpoint-every", "2", "--out", folder]
    assert training(*quick, *flags).status == 0
    return folder


@pytest.fixture
def copied(begun, tmp_path) -> Path:
    shutil.copytree(begun, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def snapshot(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_of_two_jobs_one_goes_on_and_the_other_says_who_holds_the_run(copied, quick):
    flags = ["--resume", "--out", copied, "--max-steps", "0", "--no-curves"]
    slow = start(2, "-c", SLOW, *flags)
    until(lambda: "resuming from" in (copied / "log.txt").read_text(), slow)
    before = snapshot(copied)
    for resume in (["--resume"], ["--resume", copied / "checkpoints" / "last.h5"], ["--resume", "auto"]):
        second = training(*resume, "--out", copied)
        (line,) = second.errors
        assert second.status == 2 and f"{copied}: another job trains here: process " in line
        assert f" on {os.uname().nodename}, since 20" in line and line.endswith("; wait for its end, or stop it")
    assert snapshot(copied) == before
    os.kill(slow.ranks()[0], signal.SIGKILL)
    assert slow.wait().status != 0
    result = training("--resume", "--out", copied, "--max-steps", "0", ranks=2)
    assert result.status == 0, result.err


SLOW = """
import sys, time
from dpcnn import train
from dpcnn.training.trainer import Trainer

def sleep(trainer, *arguments, step=Trainer.train_step):
    time.sleep(60)
    return step(trainer, *arguments)

Trainer.train_step = sleep
sys.exit(train.main(sys.argv[1:]))  # dpcnn.train
"""


def until(condition, job) -> None:
    while not condition():
        assert job.process.poll() is None, job.wait()
        time.sleep(0.02)


@pytest.mark.parametrize("count", [2, 3])
def test_two_resumes_at_the_same_moment(copied, count):
    flags = ["--resume", "--out", copied, "--max-steps", "0", "--no-curves"]
    jobs = [start(1, "-m", "dpcnn.train", *flags, "--keep", "9") for _ in range(count)]
    results = [job.wait() for job in jobs]
    assert sorted(result.status for result in results)[0] == 0
    for result in results:
        if result.status:
            assert result.status == 2 and len(result.errors) == 1, result.err
            assert "another job trains here: process " in result.errors[0] or "meanwhile" in result.errors[0]
    steps = [line for line in (copied / "metrics.jsonl").read_text().splitlines() if '"end"' in line]
    assert len(steps) == 1


LINKS = ["log.txt", "metrics.jsonl", "config.toml", "times.json", "checkpoints", ".lock"]


@pytest.mark.parametrize("name", LINKS)
def test_a_planted_link_is_not_written_through(copied, tmp_path, name):
    outside = tmp_path / "outside"
    planted = copied / name
    if planted.is_dir():
        shutil.move(planted, outside)
    else:
        outside.write_text("precious")
        planted.unlink()
    before = snapshot(outside) if outside.is_dir() else outside.read_bytes()
    planted.symlink_to(outside)
    result = training("--resume", "--out", copied, "--max-steps", "5")
    assert (snapshot(outside) if outside.is_dir() else outside.read_bytes()) == before
    assert result.status == 2 and len(result.errors) == 1 and "Traceback" not in result.err, result.err


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["report", "RUN"], ["report.html", ".report.html.part"]),
        (["plot", "RUN"], ["curves.png", "curves.svg"]),
        (["export", "RUN", "--format", "npz", "--out", "RUN/q.npz"], ["q.npz", ".q.npz.part"]),
        (["evaluate", "RUN", "--plots", "RUN"], ["confusion.png", "mistakes.svg"]),
    ],
)
def test_no_command_writes_through_a_planted_link(copied, tmp_path, words, names):
    victims = []
    for name in names:
        victims.append(tmp_path / f"victim of {name}")
        victims[-1].write_text("precious")
        (copied / name).symlink_to(victims[-1])
    result = command(*(word.replace("RUN", str(copied)) for word in words))
    assert [victim.read_text() for victim in victims] == ["precious"] * len(names)
    assert result.status == 2 and len(result.errors) == 1 and "Traceback" not in result.err, result.err


def test_pipes_in_place_of_files_hang_nothing(copied):
    for name in ("log.txt", "metrics.jsonl", "config.toml", "times.json"):
        (copied / name).unlink()
        os.mkfifo(copied / name)
    for words in (["train", "--resume", "--out", copied], ["report", copied], ["plot", copied]):
        result = command(*words)
        assert result.status == 2 and len(result.errors) == 1, result.err


@pytest.mark.slow
def test_a_folder_of_any_name(copied, tmp_path):
    """Bytes that are no text, a terminal's escape, and what Matplotlib would take for a formula."""
    odd = tmp_path / os.fsdecode(b"\xff \x1b[2J $\\frac$ <b>")
    copied.rename(odd)
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for name, *words in (
        ["train", "--resume", "--out", odd, "--max-steps", "5", "--no-curves"],
        ["evaluate", odd, "--json"],
        ["plot", odd, odd],
        ["report", odd],
        ["export", odd, "--format", "npz", "--out", odd / "net.npz"],
    ):
        result = run(0, "-m", f"dpcnn.{name}", *words, env=environment)
        assert result.status == 0, result.err
    assert "\x1b" not in (odd / "log.txt").read_text() and "\x1b" not in (odd / "report.html").read_text()


def test_the_checkpoint_of_a_folder(copied, tmp_path):
    checkpoints = copied / "checkpoints"
    assert find_checkpoint(copied) == checkpoints / "best.h5"
    (checkpoints / "best.h5").unlink()
    assert find_checkpoint(copied) == checkpoints / "last.h5"
    assert find_checkpoint(checkpoints / "last.h5") == checkpoints / "last.h5"
    with pytest.raises(CheckpointError, match="a folder without checkpoints/last.h5; give a run's folder or a"):
        find_checkpoint(tmp_path)


def test_steps_of_more_digits_are_later(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("step-00000009.h5", "step-123456789.h5", "step-99999999.h5", "step-1.h5", "step-\x1b[2J.h5"):
        (tmp_path / "checkpoints" / name).touch()
    assert RunFolder(tmp_path).newest().name == "step-123456789.h5"


def test_a_run_does_not_go_back_to_a_step_of_fewer_digits(copied):
    earlier, latest = (copied / "checkpoints" / f"step-{step}.h5" for step in (99_999_999, 100_000_000))
    shutil.copy(copied / "checkpoints" / "step-00000004.h5", earlier)
    latest.touch()
    with pytest.raises(CheckpointError, match=f"the run has continued to {latest.name}"):
        find_start(Namespace(resume=earlier, out=None))


def test_a_start_that_was_killed_before_the_run_had_a_configuration_is_repeated(quick, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in (".lock", ".config.toml.0123456789abcdef.part"):
        (folder / name).touch()
    words = [*quick, "--model", "mlp", "--max-steps", "1", "--out", folder, "--resume", "auto"]
    result = training(*words)
    assert result.status == 0, result.err
    assert not list(folder.glob(".*.part"))


@pytest.mark.parametrize("name", ["checkpoints/x", ".x.part", "config.toml.part", "x"])
def test_files_of_others_are_left_alone(quick, tmp_path, name):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.touch()
    result = training(*quick, "--model", "mlp", "--max-steps", "1", "--out", tmp_path / "run", "--resume", "auto")
    assert result.status == 2 and "exists and is not an empty folder" in result.err
    assert path.exists()


def test_a_line_before_the_run_has_a_folder_is_printed_all_the_same(tmp_path, capsys):
    console = Console(lambda: True)
    console.log_to(tmp_path / "run" / "log.txt")
    console.say("warning: nobody watches")
    assert capsys.readouterr().out == "warning: nobody watches\n" and not (tmp_path / "run").exists()


def test_a_run_that_another_job_has_continued_since_it_was_read_is_not_opened(copied):
    config = from_dict(RunFolder(copied).read_config())
    for step in (0, 2):
        with pytest.raises(CheckpointError, match="another job has trained here in the meantime; resume again"):
            RunFolder(copied).open(config, Progress(step), fresh=False)
    RunFolder(copied).open(config, Progress(4), fresh=False)
