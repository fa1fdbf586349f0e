"""Batch scripts: what is written and refused, and the one for PBS with stand-ins for PBS itself."""

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import command, training
from conftest import ROOT, Job, environment
from metrics import timeless

from dpcnn.cluster.batch import SCHEDULERS

SCRIPTS = ["local.sh", "test.sh", "slurm-scaling.sbatch"]


def submit(*words):
    return command("submit", *words)


def check_shell(path: Path) -> None:
    """bash reads the script; shellcheck, where it is installed, has nothing to say."""
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--exclude=SC1091", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_shipped_scripts_are_shell(name):
    check_shell(ROOT / "launch" / name)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_written_scripts_are_shell(tmp_path, scheduler):
    written = submit("runs/mine", "--scheduler", scheduler, "--setup", "module load dpcnn", "--", "--seed", "3")
    assert written.status == 0, written.err
    (tmp_path / "script").write_text(written.out)
    check_shell(tmp_path / "script")


def test_arguments_of_a_script_replace_those_that_it_was_written_with(tmp_path):
    """As in sbatch SCRIPT RUN [arguments]; here the starter only prints what it would start."""
    (tmp_path / "script").write_text(submit("runs/mine", "--starter", "echo", "--", "--recipe", "accurate").out)
    for words, expected in (
        ([], "runs/mine --recipe accurate"),
        (["runs/other", "--seed", "3"], "runs/other --seed 3"),
    ):
        result = Job(["bash", tmp_path / "script", *words], env={"SLURM_JOB_END_TIME": "1"}, cwd=tmp_path).wait()
        assert result.out == f"python -m dpcnn.train --resume auto --out {expected}\n", result.err


def test_ranks_without_a_microbatch_are_told_before_the_job_waits(tmp_path):
    told = "warning: a batch has 4 microbatches, so 4 of 8 ranks have no gradient to compute; give a larger --batch"
    words = [tmp_path / "mine", "--ranks-per-node", "8", "--", "--recipe", "simple-cnn"]
    alone, enough = submit(*words), submit(*words, "--batch", "256")
    assert alone.status == 0 and alone.out.startswith("#!") and alone.err.startswith(told)
    assert enough.status == 0 and not enough.err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.toml").touch()  # a run that exists keeps its own batch
    assert not submit(*words).err


def test_flags_reach_the_script():
    flags = ["--nodes", "4", "--ranks-per-node", "8", "--time", "2-00:30:00", "--memory", "2", "--starter", "mpirun"]
    result = submit("runs/my run", *flags, "--", "--recipe", "accurate", "--seed", "3")
    assert result.status == 0, result.err
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --time=48:30:00",
        "#SBATCH --mem-per-cpu=2G",
        "#SBATCH --signal=B:USR1@120",
        "starter=${DPCNN_STARTER:-mpirun}",
        "[ $# -gt 0 ] || set -- 'runs/my run' --recipe accurate --seed 3",
    ):
        assert line in result.out.splitlines()
    assert "@" not in result.out.replace("$@", "").replace("USR1@120", "")


def test_a_short_job_is_not_told_of_its_end_at_its_beginning():
    assert "#SBATCH --signal=B:USR1@24\n" in submit("runs/short", "--time", "2").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "--nodes: must be at least 1, not 0"),
        (["--time", "1h"], "--time: expected minutes, M:S, H:M:S or D-H:M:S, not '1h'"),
        (["--", "--recipee", "x"], "unrecognized arguments: --recipee x"),
        (["--", "--lr", "-1"], "--lr: must be a number above 0, not -1.0"),
        (["--ranks-per-node", "4", "--", "--min-ranks", "5"], "--min-ranks: 5, but this job has 4 in all"),
        (["--", "--out", "x"], "--out: the job gives this itself"),
        (["--send"], "--send: no sbatch on the PATH"),
    ],
)
def test_mistakes(words, message, tmp_path, monkeypatch):
    path = ":".join(str(tmp_path) if (Path(p) / "sbatch").exists() else p for p in environment()["PATH"].split(":"))
    monkeypatch.setenv("PATH", path)
    result = submit(tmp_path / "run", *words)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0], result.err
    assert list(tmp_path.iterdir()) == []


def stand_in(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "run").write_text("mine")
    result = submit(tmp_path / "run")
    assert result.status == 2 and result.errors == [
        f"dpcnn: error: {tmp_path / 'run'}: a file; give the folder of the run, which the job creates"
    ]


def test_a_script_is_sent_and_not_written_over(tmp_path, monkeypatch):
    stand_in(tmp_path, "sbatch", 'echo "Submitted batch job 7 of $1"')
    monkeypatch.setenv("PATH", f"{tmp_path}:{environment()['PATH']}")
    result = submit(tmp_path / "run", "--send")
    script = tmp_path / "run.sbatch"
    assert result.status == 0 and result.out == f"{script}: Submitted batch job 7 of {script}\n", result.err
    assert submit(tmp_path / "run", "--send").status == 0, "the same again"
    written = script.read_text()
    other = submit(tmp_path / "run", "--nodes", "9", "--send")
    assert other.status == 2 and "exists already with other content" in other.errors[0]
    assert script.read_text() == written


@pytest.mark.slow
def test_a_job_under_pbs_goes_on_in_another_one(quick, tmp_path):
    """No PBS is here: qstat tells 6 s of walltime, and qsub writes down what it was given."""
    stand_in(tmp_path, "qstat", 'echo "    Resource_List.walltime = 00:00:06"')
    stand_in(tmp_path, "qsub", f'echo "$@" >> {tmp_path}/queued')
    flags = [*quick, "--epochs", "60", "--model", "small-cnn", "--keep", "1"]
    written = submit(tmp_path / "run", "--scheduler", "pbs", "--starter", "mpirun -n 2", "--", *flags)
    assert written.status == 0, written.err
    script = tmp_path / "run.sh"
    script.write_text(written.out)
    base = {"PATH": f"{tmp_path}:{environment()['PATH']}", "PBS_O_WORKDIR": str(ROOT), "PBS_JOBID": "7.server"}
    first = Job(["bash", script], env=base).wait()
    assert first.status == 75 and ": the job's time ends in " in first.out, first.err
    queued = (tmp_path / "queued").read_text().split(" ", 2)
    assert queued[0] == "-v" and queued[1].startswith(f"RUN={tmp_path / 'run'},ARGUMENTS=")
    assert (tmp_path / "queued").read_text().rstrip().endswith(f" {script}")
    stand_in(tmp_path, "qstat", "exit 1")
    second = Job(["bash", script], env=base).wait()
    assert second.status == 0, second.err
    assert training(*flags, "--out", tmp_path / "straight").status == 0
    assert timeless(tmp_path / "run") == timeless(tmp_path / "straight")
    assert len((tmp_path / "queued").read_text().splitlines()) == 1
