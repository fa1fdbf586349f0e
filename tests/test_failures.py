"""What goes wrong for a user: one line, exit status 2, nothing lost."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from commands import command, training
from conftest import ROOT, Job, many, run, start, train
from metrics import events, timeless, until_step

from dpcnn.runs.checkpoint import read
from dpcnn.training.trainer import Trainer


def mistake(result, *fragments: str) -> None:
    assert result.status == 2, result.err
    assert len(result.errors) == 1, result.err
    for fragment in fragments:
        assert fragment in result.errors[0]
    assert "Traceback" not in result.err


FLAGS = [
    (["--epocs", "3"], "unrecognized arguments: --epocs 3; did you mean '--epochs'?"),
    (["--augment"], "unrecognized arguments: --augment; see dpcnn train --help"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    (["--out", ""], "argument --out: expected a value, not an empty text; leave it out, or give one"),
    (["--batch", "0"], "--batch: must be at least 1, not 0"),
    (["--batch", "many"], "argument --batch: invalid int value: 'many'"),
    (["--lr", "-1"], "--lr: must be a number above 0, not -1.0"),
    (["--exchange", "magic"], "--exchange: no 'magic'; choose from allreduce, exact"),
    (["--validation", "0.5.1"], "argument --validation: invalid float value: '0.5.1'"),
    (["--data", "imagenet"], "no data set 'imagenet'"),
    (["--recipe", "nowhere.toml"], "--recipe: no recipe and no file 'nowhere.toml'"),
    (["--resume", "nowhere.h5"], "nowhere.h5: No such file or directory"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_flags(flags, message, small, tmp_path):
    result = training("--data", small, "--out", tmp_path / "run", *flags, ranks=3)
    mistake(result, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [0, -1])
def test_flags_under_mpirun(number, small, tmp_path):
    flags, message = FLAGS[number]
    mistake(train(3, "--data", small, "--out", tmp_path / "run", *flags), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "name"), [(["evaluate"], "RUN|CHECKPOINT"), (["data", "info"], "NAME|DIR"), (["plot"], "RUN")]
)
def test_an_empty_text_is_not_the_current_folder(words, name):
    mistake(command(*words, ""), f"argument {name}: expected a value, not an empty text")


def test_a_recipe_with_a_typo(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('model = "simple-cnn"\nlearning_rate = 0.1\n')
    mistake(training("--recipe", recipe, "--out", tmp_path / "run", ranks=3), "mine.toml: unknown key 'learning_rate'")


def test_images_too_small_for_the_model(tmp_path):
    arrays = {"train": (20, 3, 3), "test": (5, 3, 3)}
    images = {f"x_{split}": np.zeros(shape, np.uint8) for split, shape in arrays.items()}
    labels = {f"y_{split}": np.arange(shape[0], dtype=np.uint8) % 2 for split, shape in arrays.items()}
    np.savez(tmp_path / "tiny.npz", **images, **labels)
    made = command("data", "prepare", tmp_path / "tiny.npz", "--out", tmp_path / "tiny")
    assert made.status == 0, made.err
    result = training("--data", tmp_path / "tiny", "--validation", "5", "--out", tmp_path / "run", ranks=3)
    mistake(result, "images of (3, 3, 1) are too small for this model: maxpool2d2 would give (0, 0, 64)")


def test_an_output_folder_of_another_run(quick, tmp_path):
    folder = tmp_path / "run"
    assert training(*quick, "--max-steps", "1", "--out", folder, ranks=1).status == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    mistake(
        training(*quick, "--out", folder, ranks=3), "belongs to another run; give another --out, or continue that run"
    )
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("years of work")
    mistake(training(*quick, "--out", strange, ranks=2), "exists and is not an empty folder")
    mistake(training(*quick, "--out", strange / "thesis.tex", ranks=2), "exists and is not an empty folder")
    assert (strange / "thesis.tex").read_text() == "years of work"


def test_an_output_folder_that_can_t_be_written(quick, tmp_path):
    mistake(training(*quick, "--out", "/proc/run", ranks=3), "/proc/run: can't be written")
    blocked = tmp_path / "file"
    blocked.write_text("")
    mistake(training(*quick, "--out", blocked / "run", ranks=2), "can't be written")


def test_nothing_to_resume(tmp_path):
    (tmp_path / "empty").mkdir()
    mistake(training("--resume", "--out", tmp_path / "empty", ranks=2), "no run to resume")
    mistake(training("--resume", cwd=tmp_path, ranks=2), "runs/: no run to resume")


def test_resume_without_a_folder_takes_the_newest_run(quick, tmp_path):
    for name in ("old", "new"):
        assert training(*quick, "--max-steps", "1", "--out", tmp_path / "runs" / name, ranks=1).status == 0
    result = training("--resume", "--max-steps", "2", cwd=tmp_path, ranks=2)
    assert result.status == 0 and "run folder: runs/new" in result.out


LIMITED = """
import resource, signal, sys
from dpcnn import train
from dpcnn.training.trainer import Trainer

def limit_and_save(trainer, save=Trainer.save):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))
    return save(trainer)

Trainer.save = limit_and_save
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(quick, tmp_path):
    """A limit of 2 MB on the size of files stands for a full disk: the write fails half-way."""
    folder = tmp_path / "run"
    assert training(*quick, "--max-steps", "3", "--out", folder).status == 0
    assert (folder / "checkpoints" / "last.h5").stat().st_size > 2_000_000
    result = run(2, "-c", LIMITED, "--resume", "--out", folder, "--max-steps", "0")
    mistake(result, "can't write the checkpoint (File too large); the one before it is untouched: make room")
    assert [path.name for path in (folder / "checkpoints").glob("*step*")] == ["step-00000003.h5"]
    assert read(folder / "checkpoints" / "last.h5").progress.step == 3
    assert training("--resume", "--out", folder, "--max-steps", "5").status == 0


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 9 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mount is not allowed here: {mounted.stderr}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk(quick, small_disk):
    folder = small_disk / "run"
    result = training(*quick, "--out", folder, "--checkpoint-every", "2", ranks=3)
    mistake(result, "can't write the checkpoint (No space left on device); the one before it is untouched")
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step*"))
    assert kept and read(folder / "checkpoints" / kept[-1]).progress.step == 2 * len(kept)
    assert not list((folder / "checkpoints").glob(".*"))


def test_a_data_set_that_finds_no_room(small_disk, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (900, 128, 128), np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, y_train=np.arange(900) % 3)
    out = small_disk / "set"
    for flags in ([], ["--contiguous"]):
        for ranks in (1, 2):
            result = run(ranks, "-m", "dpcnn.data", "prepare", tmp_path / "x.npz", "--out", out, *flags)
            mistake(
                result, f"{out}: can't be written (No space left on device); make room there, or give another --out"
            )
            assert not list(small_disk.iterdir())


def test_a_loss_that_is_not_finite(quick, tmp_path):
    folder = tmp_path / "run"
    flags = [*quick, "--optimizer", "sgd", "--lr", "1e25", "--warmup", "0", "--max-steps", "1"]
    mistake(
        training(*flags, "--out", tmp_path / "evaluated", ranks=2), "epoch 1: the validation loss is not finite; try a"
    )
    assert training(*flags, "--validation", "0", "--out", folder, ranks=2).status == 0
    before = (folder / "checkpoints" / "last.h5").read_bytes()
    result = training("--resume", "--out", folder, "--max-steps", "5", ranks=3)
    mistake(
        result,
        "step 2, epoch 1: the loss is not finite; the first layer with values that are not finite is conv2d",
        "the last checkpoint stays as it was; try a smaller --lr than 1e+25",
    )
    assert (folder / "checkpoints" / "last.h5").read_bytes() == before


def test_an_optimizer_that_is_not_finite_ends_the_run_before_it_reaches_a_checkpoint(quick, tmp_path, monkeypatch):
    """The square of a gradient of 1e20 is infinite, and a checkpoint with it could not be read."""
    step, folder = Trainer.train_step, tmp_path / "run"

    def overflow(trainer):
        commit = step(trainer)
        if trainer.progress.step == 3:
            trainer.state.next["v"][5] = np.inf
        return commit

    monkeypatch.setattr(Trainer, "train_step", overflow)
    result = training(*quick, "--checkpoint-every", "3", "--out", folder)
    mistake(result, "step 6: the optimizer's v is not finite; try a smaller --lr")
    assert read(folder / "checkpoints" / "last.h5").progress.step == 3


@pytest.fixture(scope="module")
def mapped(npz, tmp_path_factory) -> Path:
    """The small data set in contiguous shards, which a run keeps open."""
    folder = tmp_path_factory.mktemp("mapped") / "small"
    made = command("data", "prepare", npz, "--out", folder, "--contiguous", "--shards", "2")
    assert made.status == 0, made.err
    return folder


def clip_coefficient(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def overwrite(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(bytes(1000))


def touch(path: Path) -> None:
    os.utime(path)


WAITING = """
import sys, time
from pathlib import Path
from dpcnn import train
from dpcnn.training.trainer import Trainer

def wait(trainer, *arguments, step=Trainer.train_step):
    while trainer.progress.step == 5 and not Path(GO).exists():
        time.sleep(0.01)
    return step(trainer, *arguments)

Trainer.train_step = wait
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [(clip_coefficient, "train-00.h5: "), (overwrite, "train-00.h5: "), (touch, "")],
)
def test_a_shard_that_changes_during_a_run(mapped, quick, tmp_path, change, message):
    data, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(mapped, data)
    flags = [*quick, "--data", data, "--model", "mlp", "--checkpoint-every", "3", "--no-curves", "--out", out]
    job = start(2, "-c", WAITING.replace("GO", repr(str(tmp_path / "go"))), *flags)
    until_step(out, 5, job)
    change(data / "train-00.h5")
    (tmp_path / "go").touch()
    result = job.wait()
    if not message:
        assert result.status == 0, result.err
        return
    assert result.status == 2 and "Traceback" not in result.err and "Bus error" not in result.err, result.err
    (line,) = {error for error in result.errors}
    assert message in line and "while it was in use" in line
    shutil.copy(mapped / "train-00.h5", data)
    resumed = training("--resume", "--out", out, ranks=3)
    assert resumed.status == 0, resumed.err
    assert training(*flags[:-1], tmp_path / "undisturbed").status == 0
    assert timeless(out) == timeless(tmp_path / "undisturbed")


@pytest.fixture
def long(small) -> list[str]:
    """Flags of a training that would take minutes."""
    return ["--data", str(small), "--validation", "100", "--batch", "64", "--epochs", "10000", "--keep", "2"]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("number", "victim"),
    [
        (signal.SIGINT, 2),
        (signal.SIGTERM, 0),
        (signal.SIGUSR1, 2),
        slow(signal.SIGINT, 0),
        slow(signal.SIGTERM, 2),
        slow(signal.SIGUSR1, 0),
    ],
)
def test_a_signal_to_any_rank_ends_the_run_at_a_step_with_a_checkpoint(long, tmp_path, number, victim):
    folder = tmp_path / "run"
    job = start(3, "-m", "dpcnn.train", *long, "--out", folder)
    until_step(folder, 3, job)
    os.kill(job.ranks()[victim], number)
    result = job.wait()
    assert result.status == 75, result.err
    assert "Traceback" not in result.err
    newest = max((folder / "checkpoints").glob("step*"))
    step = read(newest).progress.step
    line = f"stopped at step {step}: by {number.name} (rank {victim}); continue with: mpirun -n 3 dpcnn train --resume"
    assert f"{line} --out {folder}\n" in result.out
    assert newest.name == f"step-{step:08d}.h5"
    straight = tmp_path / "straight"
    assert training(*long, "--max-steps", str(step + 3), "--out", straight, ranks=2).status == 0
    assert training("--resume", "--max-steps", str(step + 3), "--out", folder, ranks=2).status == 0
    assert events(folder)[-1]["weights_sha256"] == events(straight)[-1]["weights_sha256"]


@pytest.fixture
def local():
    """A function that starts launch/local.sh with some words."""
    environment = Path(shutil.which("mpirun")).parents[1]
    if not (environment / "pyvenv.cfg").exists() or not list(environment.glob("installed-*plot")):
        pytest.skip("mpirun is not from an environment that launch/ has made")
    flags = {"DPCNN_VENV": str(environment), "DPCNN_MPI": "mpich" if "mpich" in environment.name else "openmpi"}
    return lambda *words: Job([ROOT / "launch" / "local.sh", *words], env=flags)


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 1])
def test_the_script_starts_a_killed_job_again(local, quick, tmp_path, restarts):
    flags = [*quick, "--epochs", "40", "--model", "small-cnn", "--keep", "1", "--no-curves"]
    job = local("-n", "3", "--restarts", str(restarts), *flags, "--survive", "no", "--out", tmp_path / "run")
    until_step(tmp_path / "run", 40, job)
    os.kill(job.ranks()[1], signal.SIGKILL)
    result = job.wait()
    assert result.out.count("continues from its last checkpoint; restarts left: 0") == restarts
    assert (result.status == 0) == bool(restarts), result.err
    if restarts:
        assert training(*flags, "--out", tmp_path / "straight").status == 0
        assert timeless(tmp_path / "run") == timeless(tmp_path / "straight")


def test_ctrl_c_on_the_script_saves_a_checkpoint(local, long, tmp_path):
    """launch/local.sh in a terminal's foreground group, which gets the SIGINT as one."""
    folder = tmp_path / "run"
    job = local("-n", "3", *long, "--out", folder)
    until_step(folder, 3, job)
    os.killpg(job.process.pid, signal.SIGINT)
    result = job.wait()
    assert result.status == 75, result.err
    assert "stopped at step" in result.out
    assert read(max((folder / "checkpoints").glob("step*"))).progress.step > 3


@pytest.mark.slow
def test_killed_at_random_moments_on_random_ranks_it_ends_as_if_left_alone(quick, tmp_path):
    straight, folder, wanted = tmp_path / "straight", tmp_path / "run", many(20)
    flags = [*quick, "--epochs", "30", "--checkpoint-every", "5", "--model", "small-cnn"]
    whole = train(2, *flags, "--out", straight)
    assert whole.status == 0
    seed = int(os.environ.get("DPCNN_KILL_SEED") or time.time())
    print(f"DPCNN_KILL_SEED={seed} repeats these kills")
    moments = np.random.default_rng(seed)
    kills, resumed_from = 0, set()
    for _ in range(100):
        if kills == wanted:
            break
        resume = (folder / "config.toml").exists()
        if folder.exists() and not resume:  # killed before there was a run to resume
            shutil.rmtree(folder)
        ranks = int(moments.integers(1, 5))
        going_on = ["--resume"] if resume else flags
        job = start(ranks, "-m", "dpcnn.train", "--no-curves", *going_on, "--out", folder)
        time.sleep(moments.uniform(0.15, 0.5) * whole.seconds)
        ended = job.process.poll() is not None
        job.kill()
        result = job.wait()
        resumed_from |= {line for line in result.out.splitlines() if line.startswith("resuming from")}
        if ended:  # in spite of it all: then begin anew
            assert result.status == 0, result.err
            assert timeless(folder) == timeless(straight)
            shutil.rmtree(folder)
        kills += not ended
    assert kills == wanted
    going_on = ["--resume"] if (folder / "config.toml").exists() else flags
    result = train(3, *going_on, "--out", folder)
    assert result.status == 0, result.err
    assert timeless(folder) == timeless(straight)
    assert len(resumed_from) > 3
    for name in ("best.h5", "last.h5"):
        ours, theirs = (path / "checkpoints" / name for path in (folder, straight))
        assert read(ours).weights_sha256 == read(theirs).weights_sha256
