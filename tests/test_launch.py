"""How a process was started, and launchers that don't fit the MPI library."""

import os
import re
import resource
import shlex
import sys
import time
from pathlib import Path

import pytest
from conftest import Job, run, start
from threads import run_ranks

from dpcnn.errors import ConfigError, LaunchError
from dpcnn.parallel import start as start_of_mpi
from dpcnn.parallel.launch import Launch, check_limits, detect, usual_launcher
from dpcnn.training.run import train, training_parser

LAUNCHES = [
    ({}, None),
    ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, Launch("Open MPI", 2, 4)),
    ({"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALNRANKS": "3", "MPI_LOCALRANKID": "1"}, Launch("Hydra", 1, 3)),
    ({"MPI_LOCALNRANKS": "3", "MPI_LOCALRANKID": "1"}, Launch("Hydra", 1, 3)),
    ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, Launch("Slurm", 5, 8)),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script's own shell: no step
    ({"PMIX_RANK": "3"}, Launch("PMIx", 3, 4)),
    (
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
        Launch("Open MPI", 0, 4),
    ),
    ({"OMPI_COMM_WORLD_RANK": "x", "OMPI_COMM_WORLD_SIZE": "4"}, None),
]


@pytest.mark.parametrize(("environment", "expected"), LAUNCHES)
def test_detect(environment, expected):
    assert detect(environment) == expected


class Used(Exception):
    """The first use of the world of ranks, which may send messages."""


@pytest.mark.parametrize("survives", ["0", "1"])
@pytest.mark.parametrize("number", range(len(LAUNCHES)))
def test_under_slurm_messages_wait_until_all_ranks_are_out_of_mpi_init(number, survives, monkeypatch):
    environment, launch = LAUNCHES[number]
    events = []

    class Library:
        THREAD_FUNNELED = THREAD_MULTIPLE = 3
        Is_initialized = staticmethod(lambda: False)
        Init_thread = staticmethod(lambda level: events.append("MPI_Init"))

        @property
        def COMM_WORLD(self):
            raise Used

        pickle = COMM_WORLD

    monkeypatch.setattr(start_of_mpi, "_load_mpi", lambda launch: Library())
    monkeypatch.setattr(time, "sleep", events.append)
    monkeypatch.setattr(os, "environ", {start_of_mpi.ENABLED: survives, **environment})
    with pytest.raises(Used):
        start_of_mpi.world()
    assert events == ["MPI_Init"] + [start_of_mpi.RELEASED] * (launch is not None and launch.family == "Slurm")


def test_four_trainings_instead_of_one_are_refused(tmp_path):
    """Started by hand with a foreign launcher's variables, a process is alone where four were asked for."""
    jobs = [
        (rank, start(0, "-m", "dpcnn.train", "--out", tmp_path / "run", env={number: str(rank), size: "4"}))
        for number, size in (
            ("PMI_RANK", "PMI_SIZE"),
            ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
            ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
        )
        for rank in (0, 3)
    ]
    for rank, job in jobs:
        result = job.wait()
        assert result.status == 2
        if rank:
            assert result.err == ""
        else:
            (line,) = result.errors
            assert "started 4 processes, but mpi4py loaded" in line and "libmpi" in line and "; use " in line
    assert not (tmp_path / "run").exists()


def test_open_mpi_s_launcher_with_another_library_is_refused_before_mpi_starts(tmp_path):
    fake = tmp_path / "mpi4py"
    fake.mkdir()
    (fake / "__init__.py").write_text("class rc: pass\n")
    (fake / "MPI.py").write_text("def Get_library_version(): return 'MPICH Version:      5.0.2\\nmore'\n")
    environment = {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "4",
        "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}",
    }
    result = run(0, "-m", "dpcnn.train", env=environment)
    assert result.status == 2
    assert "mpi4py loaded MPICH 5.0.2" in result.errors[0]


def test_no_mpi_library_is_a_run_of_one_rank_and_says_so(quick, tmp_path):
    fake = tmp_path / "mpi4py"
    fake.mkdir()
    (fake / "__init__.py").write_text("class rc: pass\n")
    (fake / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    result = run(0, "-m", "dpcnn.train", *quick, "--max-steps", "2", "--out", tmp_path / "run", env=environment)
    assert result.status == 0, result.err
    assert "1 rank, no MPI library" in result.out
    several = run(0, "-m", "dpcnn.train", *quick, env=environment | {"PMI_RANK": "0", "PMI_SIZE": "2"})
    assert several.status == 2 and "mpi4py loaded no MPI library" in several.errors[0]


def test_mpi_starts_without_a_home_folder():
    code = "import os\ndel os.environ['HOME']\nfrom dpcnn.parallel.start import world\nprint(world().size)"
    result = run(0, "-c", code)
    assert (result.status, result.out) == (0, "1\n"), result.err


def test_output_into_a_pipe_is_no_terminal():
    code = "from dpcnn.parallel.terminal import terminal; print(terminal(1), terminal(2))"
    words = "".join(run(2, "-c", code).out.split())  # the lines of two ranks may come mixed
    assert words == "None" * 4


def test_a_bar_moves_on_a_terminal(quick, tmp_path):
    """Under mpirun in a pseudo-terminal, the bar shows itself while the training goes on."""
    spawn = "import pty, sys; sys.exit(pty.spawn(['bash', '-c', sys.argv[1]]) >> 8)"
    flags = [*quick, "--epochs", "20", "--model", "small-cnn", "--out", str(tmp_path / "run")]
    words = [sys.executable, "-m", "dpcnn.train", *flags]
    result = Job([sys.executable, "-c", spawn, f"stty rows 24 cols 100; mpirun -n 2 {shlex.join(words)}"]).wait()
    assert result.status == 0, result.out
    bars = [line for line in result.out.splitlines() if re.match(r"epoch \d+/20 .*images/s, loss .* left", line)]
    assert bars and result.out.index(bars[0]) < result.out.index("epoch 20/20: validation accuracy")


@pytest.mark.parametrize(
    ("programs", "allocation", "launcher"),
    [
        (["mpirun", "srun"], True, "mpirun"),
        (["srun"], True, "srun --mpi=pmix"),
        (["srun"], False, "mpirun"),
        ([], True, "mpirun"),
    ],
)
def test_ranks_are_started_with_what_there_is(tmp_path, monkeypatch, programs, allocation, launcher):
    for name in programs:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if allocation:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert usual_launcher() == launcher


def test_a_command_that_starts_ranks_itself_says_so_once_under_a_launcher():
    commands = ["dpcnn.bench", "--scaling", "1,2"], ["dpcnn", "verify"], ["dpcnn.reproduce", "lenet5"]
    for job in [start(3, "-m", *words) for words in commands]:
        result = job.wait()
        assert result.status == 2
        assert result.err.count("starts the ranks itself: run it without the launcher of") == 1


LATE = """
import os, sys, time
import dpcnn.verify
from dpcnn.parallel.launch import detect
if detect(os.environ).rank == 0:
    time.sleep(1.5)
sys.exit(dpcnn.verify.main([]))
"""


def test_the_first_rank_speaks_although_the_others_fail_before_it():
    """Before MPI has started, mpirun stops the job at the first failure: so the others wait for rank 0's line."""
    result = run(3, "-c", LATE)
    assert result.status == 2
    assert result.err.count("starts the ranks itself") == 1


ALONE = """
import os, sys
from dpcnn import doctor
from dpcnn.parallel.launch import detect
if {}:
    os.environ["TMPDIR"] = "/nowhere"
sys.exit(doctor.main([]))
"""


@pytest.mark.parametrize("who", ["detect(os.environ).rank == 0", "detect(os.environ).rank == 1", "True"])
def test_a_rank_that_fails_before_mpi_starts_ends_the_job_with_one_line(who):
    """Hydra, the launcher of MPICH, would let the others wait in MPI_Init for ever."""
    result = run(3, "-c", ALONE.format(who))
    assert result.status == 2
    (line,) = result.errors
    assert "/nowhere: MPI can't make its temporary files there" in line


DIFFERENT = """
import os, sys
from dpcnn import train
from dpcnn.parallel.launch import detect
sys.argv += ["--lr", "0.01"] * detect(os.environ).rank
sys.exit(train.main())
"""


def test_ranks_with_different_options_are_refused(quick, tmp_path):
    result = run(2, "-c", DIFFERENT, *quick, "--max-steps", "1", "--out", tmp_path / "run")
    assert result.status == 2 and not (tmp_path / "run").exists()
    (line,) = result.errors
    assert "--lr: rank 0 has 0.003, but rank 1 has 0.01; give all ranks the same command" in line


def test_a_rank_whose_node_alone_is_at_fault_says_so(tmp_path):
    """A folder that one node lacks: rank 0 has nothing to say, and MPI has not started."""
    environment = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4", "TMPDIR": str(tmp_path / "none")}
    result = run(0, "-m", "dpcnn.train", "--max-steps", "1", env=environment)
    assert result.status == 2
    (line,) = result.errors
    assert "none: MPI can't make its temporary files there" in line


def test_too_few_open_files_are_told_before_mpi_starts(monkeypatch):
    unlimited, few = resource.RLIM_INFINITY, 20
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (few if kind == resource.RLIMIT_NOFILE else unlimited,) * 2)
    with pytest.raises(LaunchError, match="the limit on open files, 20, is too low for MPI; raise it: ulimit -n 1024"):
        check_limits()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trace"], "--trace: rank 0 has false, but rank 1 has true; give all ranks the same command"),
        (["--stage", "/dev/shm"], "--stage: rank 0 has false, but rank 1 has true"),
        (["--stall-timeout", "0"], "--stall-timeout: rank 0 has 600.0, but rank 1 has 0.0"),
        (["--min-ranks", "2"], "--min-ranks: rank 0 has 1, but rank 1 has 2"),
    ],
)
def test_ranks_that_would_wait_for_each_other_at_different_places_are_refused(words, message):
    def rank(comm):
        with pytest.raises(ConfigError, match=message):
            train(comm, training_parser().parse_args(words * comm.rank), draw=None, started=0.0)

    run_ranks([2], rank)
