"""Batch jobs on a real Slurm of two nodes: signalled, queued again, gone on with, to the same bits."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from commands import command, training
from conftest import ROOT, environment
from metrics import timeless

SCRIPT = Path(__file__).parent / "slurm.sh"
TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "setpriv")
LIMIT = 90.0  # seconds of a job, all its starts together
CLEAN_UP = 4.0  # seconds that Slurm takes to be done with a start that it has ended


@pytest.fixture(scope="module")
def slurm():
    """The environment in which sbatch and the like find the two nodes."""
    if os.geteuid() or not all(shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin") for tool in TOOLS):
        pytest.skip("needs root, and Slurm and munge installed")
    if not (Path(sys.executable).parent / "ompi_info").exists():
        pytest.skip("Slurm's PMIx starts Open MPI's ranks")
    folder = tempfile.mkdtemp(prefix="dpcnn-slurm-")  # whose parents all may enter: munged is another user
    made = subprocess.run([SCRIPT, "up", folder], capture_output=True, text=True, timeout=60)
    env = environment() | {"SLURM_CONF": f"{folder}/slurm.conf"}
    try:
        assert made.returncode == 0, made.stderr
        yield env
    finally:
        subprocess.run([SCRIPT, "down", folder], capture_output=True, timeout=60)
        shutil.rmtree(folder)


def of_processes(name: str) -> Iterator[tuple[int, bytes]]:
    """The number of each process, and the content of its file of this name in /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            yield int(folder.name), (folder / name).read_bytes()


class BatchJob:
    """A job of two nodes with two ranks in all, or more, as ``dpcnn submit`` writes it."""

    def __init__(
        self, env: dict[str, str], folder: Path, starter: str, arguments, edit=lambda script: script, per_node=1
    ) -> None:
        self.env, self.folder, self.run = env, folder, folder / "run"
        words = ["--nodes", "2", "--ranks-per-node", per_node, "--time", "5"]
        words += ["--starter", starter] if starter else []
        written = command("submit", self.run, *words, "--", *arguments)
        assert written.status == 0, written.err
        script = folder / "job.sbatch"
        script.write_text(edit(written.out.replace("--mem-per-cpu=1G", "--mem-per-cpu=300M")))
        self.number = self.call("sbatch", "--parsable", f"--output={folder}/out", script)

    def call(self, *words) -> str:
        done = subprocess.run([*map(str, words)], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def state(self) -> str:
        return self.call("squeue", "-h", "-j", self.number, "-t", "all", "-o", "%T")

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text() if (self.folder / "out").exists() else ""

    def until(self, true, what: str) -> None:
        """Wait; a job that is queued again is not made to wait for its two minutes, but until nothing is left of its
        first start: else the second one fails."""
        started = time.monotonic()
        pending = None
        while not true():
            late = time.monotonic() - started > LIMIT or self.state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
            assert not late or true(), f"{what}: {self.state}\n{self.out}"
            if self.state != "PENDING":
                pending = None
            elif pending is None:
                pending = time.monotonic()
            elif time.monotonic() - pending > CLEAN_UP and not self.lives():
                subprocess.run(["scontrol", "update", f"JobId={self.number}", "StartTime=now"], env=self.env)
            time.sleep(0.2)

    def finish(self) -> None:
        """Wait until it has been queued again, and has come to its end."""
        self.until(lambda: "queued again" in self.out, "stops")
        self.until(lambda: self.state == "COMPLETED", "ends")

    def lives(self) -> bool:
        """Whether a process of the job is left, or one of Slurm's that looks after it."""
        mark, title = f"SLURM_JOB_ID={self.number}".encode(), f"slurmstepd: [{self.number}.".encode()
        return any(mark in entries.split(b"\0") for _, entries in of_processes("environ")) or any(
            words.startswith(title) for _, words in of_processes("cmdline")
        )

    def kill(self, rank: int, name: str = "SLURM_PROCID") -> None:
        """SIGKILL to a rank, as from a node without memory left; ``name``: of the variable with its number."""
        marks = {f"SLURM_JOB_ID={self.number}".encode(), f"{name}={rank}".encode()}
        for number, entries in of_processes("environ"):
            if marks <= set(entries.split(b"\0")):
                with suppress(OSError):
                    os.kill(number, signal.SIGKILL)

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_text().count('"step"') if path.exists() else 0


@pytest.fixture(scope="module")
def straight(quick, tmp_path_factory):
    """The flags of a run of some seconds, and the metrics of such a run left alone."""
    flags = [*quick, "--epochs", "80", "--model", "small-cnn", "--keep", "1", "--no-curves"]
    folder = tmp_path_factory.mktemp("straight") / "run"
    result = training(*flags, "--out", folder)
    assert result.status == 0, result.err
    return flags, timeless(folder)


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["srun --mpi=pmix", "mpirun"])
def test_a_signalled_job_is_queued_again_and_ends_with_the_same_bits(slurm, straight, tmp_path, starter):
    flags, metrics = straight
    job = BatchJob(slurm, tmp_path, starter, flags)
    job.until(lambda: job.steps() > 40, "goes on")
    job.call("scancel", "--batch", "--signal=USR1", job.number)
    job.finish()
    assert timeless(job.run) == metrics
    assert job.out.count("resuming from step-") == 1 and job.out.count(": by SIGUSR1 (rank ") == 1
    assert "warning" not in job.out, "heartbeats reach rank 0 on the other node"
    assert "Open MPI v5" in job.out and "2 ranks" in job.out


@pytest.mark.slow
def test_a_job_out_of_time_is_queued_again_without_any_signal(slurm, straight, tmp_path):
    """Slurm knows minutes only, but takes another end of a job from its owner; the script asks for it, as it does where
    Slurm tells no SLURM_JOB_END_TIME. Of 6 s, 5.5 s are kept for the checkpoint and the job's end."""
    flags, metrics = straight

    def hurry(script: str) -> str:
        shorten = 'scontrol update JobId="$SLURM_JOB_ID" EndTime=now+6'
        script = re.sub("#SBATCH --signal.*", "", script)
        return re.sub("(?m)^cd .*", rf"\g<0>\nunset SLURM_JOB_END_TIME\n[ -e {tmp_path}/run ] || {shorten}", script)

    job = BatchJob(slurm, tmp_path, "srun --mpi=pmix", flags, hurry)
    job.finish()
    assert ": the job's time ends in " in job.out and ": by SIG" not in job.out
    assert timeless(job.run) == metrics


@pytest.mark.slow
def test_a_preempted_job_goes_on_after_the_urgent_one(slurm, straight, tmp_path):
    flags, metrics = straight
    job = BatchJob(slurm, tmp_path, "srun --mpi=pmix", flags)
    job.until(lambda: job.steps() > 20, "goes on")
    job.call("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent", "--wrap=true")
    job.finish()
    assert ": by SIGTERM (rank " in job.out
    assert timeless(job.run) == metrics


@pytest.mark.slow
def test_a_job_whose_rank_dies_after_a_checkpoint_is_queued_again(slurm, straight, tmp_path):
    flags, metrics = straight
    job = BatchJob(slurm, tmp_path, "srun --mpi=pmix", flags)
    job.until(lambda: (job.run / "checkpoints" / "last.h5").exists(), "saves")
    job.kill(rank=1)
    job.finish()
    assert "stopped at step" not in job.out
    assert timeless(job.run) == metrics


@pytest.mark.slow
def test_a_cancelled_job_stops_with_a_checkpoint_for_good(slurm, straight, tmp_path):
    flags, metrics = straight
    job = BatchJob(slurm, tmp_path, "srun --mpi=pmix", flags)
    job.until(lambda: job.steps() > 20, "goes on")
    job.call("scancel", "--batch", "--signal=TERM", job.number)
    job.until(lambda: job.state in ("FAILED", "CANCELLED"), "ends")
    assert "queued again" not in job.out and "stopped at step" in job.out
    assert training("--resume", "--out", job.run, ranks=2).status == 0
    assert timeless(job.run) == metrics


@pytest.mark.slow
def test_a_job_survives_the_death_of_a_rank_and_then_of_all_ranks_of_a_node(slurm, straight, tmp_path):
    flags, metrics = straight
    job = BatchJob(slurm, tmp_path, "", flags, per_node=2)
    job.until(lambda: job.steps() > 20, "goes on")
    job.kill(1, "OMPI_COMM_WORLD_RANK")
    job.until(lambda: "3 ranks continue" in job.out and (job.run / "checkpoints" / "last.h5").exists(), "survives")
    for rank in (2, 3):
        job.kill(rank, "OMPI_COMM_WORLD_RANK")
    job.until(lambda: job.state == "COMPLETED", "ends")
    assert "queued again" not in job.out and "1 finished it" in job.out
    assert [event for event in timeless(job.run) if event["event"] != "death"] == metrics
