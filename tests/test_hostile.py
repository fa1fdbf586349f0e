"""Input that is legal, or nearly so, and that nobody thought of: it works, or one line says why not."""

import errno
import gzip
import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
from commands import command, training
from conftest import many

from dpcnn.base.files import Folder
from dpcnn.parallel.launch import check_starter, detect
from dpcnn.runs.checkpoint import read, write
from dpcnn.runs.folder import RunFolder

LINEAR = '[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "linear"\n'
NETS = {
    "batch normalisation first": '[[layers]]\nkind = "batchnorm"\n' + LINEAR,
    "pooling first": '[[layers]]\nkind = "avgpool2d"\nkernel_size = 6\n' + LINEAR,
    "no scale": LINEAR,
}


@pytest.fixture
def trained(small, tmp_path):
    """A function that trains a recipe for some steps, and returns the run's folder."""

    def train(recipe: str = LINEAR, data=small, *flags: str):
        (tmp_path / "r.toml").write_text("warmup = 0\n" + recipe)
        out = tmp_path / "run"
        result = training("--recipe", tmp_path / "r.toml", "--data", data, "--max-steps", "9", *flags, "--out", out)
        assert result.status == 0, result.err
        return out

    return train


def mistake(result, *fragments: str) -> None:
    assert result.status == 2 and len(result.err.strip().splitlines()) == 1, result.err
    for fragment in fragments:
        assert fragment in result.err


@pytest.mark.parametrize(
    "net", ["pooling first", *(pytest.param(net, marks=pytest.mark.slow) for net in list(NETS)[::2][: many(3)])]
)
def test_every_command_takes_every_net(trained, net, tmp_path):
    run = trained(NETS[net])
    for words in (["report", run], ["plot", run, "--filters"], ["evaluate", run, "--plots", tmp_path / "plots"]):
        result = command(words[0], *words[1:])
        assert result.status == 0, result.err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predict", "run", ""], "FILE|FOLDER"),
        (["report", ""], "RUN"),
        (["plot", ""], "RUN"),
        (["evaluate", ""], "RUN|CHECKPOINT"),
        (["data", "info", ""], "NAME|DIR"),
        (["data", "prepare", ""], "SOURCE"),
        (["data", "prepare", "x", "--out", ""], "--out"),
    ],
)
def test_an_empty_name_is_not_the_current_folder(words, name):
    """As that of a variable of the shell that is not set."""
    mistake(command(*words), f"argument {name}: expected a value, not an empty text; leave it out, or give one")


@pytest.mark.parametrize("shape", [(9, 9, 2), (1, 9), (6, 6, 5), (6, 6, 3)])
def test_images_of_any_shape_are_drawn(trained, shape, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{split}": rng.integers(0, 256, (n, *shape), np.uint8) for split, n in (("train", 30), ("test", 20))}
    arrays |= {f"y_{split}": np.arange(n) % 2 for split, n in (("train", 30), ("test", 20))}
    np.savez(tmp_path / "a.npz", **arrays)
    assert command("data", "prepare", tmp_path / "a.npz", "--out", tmp_path / "set").status == 0
    run = trained(LINEAR, tmp_path / "set")
    for words in (["report", run], ["evaluate", run, "--plots", tmp_path / "plots"]):
        result = command(words[0], *words[1:])
        assert result.status == 0, result.err


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_a_set_of_a_few_samples_is_trained_on(samples, tmp_path):
    arrays = {"x_train": np.zeros((samples, 4, 4), np.uint8), "x_test": np.zeros((1, 4, 4), np.uint8)}
    np.savez(tmp_path / "a.npz", **arrays, y_train=np.arange(samples) % 2, y_test=[0])
    assert command("data", "prepare", tmp_path / "a.npz", "--out", tmp_path / "set").status == 0
    (tmp_path / "r.toml").write_text(LINEAR)
    flags = ["--recipe", tmp_path / "r.toml", "--data", tmp_path / "set", "--epochs", "2", "--validation", "2"]
    result = training(*flags, "--warmup", "0", "--out", tmp_path / "run", ranks=2)
    assert result.status == 0, result.err


def test_a_run_that_is_complete_may_be_resumed(quick, tmp_path):
    run = tmp_path / "run"
    flags = ["--model", "mlp", "--max-steps", "4", "--out", run]
    assert training(*quick, *flags, ranks=2).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
    for words in (["--resume"], ["--resume", "auto"], ["--resume", run / "checkpoints" / "last.h5"]):
        result = training(*words, "--out", run, ranks=2)
        (line,) = result.out.splitlines()
        assert result.status == 0 and line.startswith(f"{run}: already complete, 1 epoch, validation accuracy 0.")
        assert line.endswith(f"; to train on from its weights, start a new run: --init-from {run}")
    for words, idle in (("--trace", "--trace has"), ("--trace --test --keep 2", "--test, --keep, --trace have")):
        (line,) = training("--resume", *words.split(), "--out", run).out.splitlines()
        assert f"; without a step, {idle} no effect; to train on " in line
    assert {path: path.read_bytes() for path in before} == before
    assert (run / "log.txt").read_text().count("already complete") == 5


def test_a_complete_run_needs_no_log(trained):
    run = trained(LINEAR)
    with mock.patch.object(Folder, "appending", side_effect=PermissionError(errno.EROFS, "Read-only file system")):
        result = training("--resume", "--out", run)
    assert result.status == 0 and result.out.startswith(f"{run}: already complete, "), result.err


@pytest.mark.parametrize("microbatch", ["90", str(2**31 - 1)])
def test_a_batch_is_never_larger_than_the_data(small, tmp_path, microbatch):
    weights = set()
    for batch in ("1000", str(2**31 - 1)):
        words = ["--batch", batch, "--microbatch", microbatch, "--max-steps", "2", "--out", tmp_path / batch]
        result = training("--model", "mlp", "--data", small, *words, ranks=2)
        assert result.status == 0, result.err
        weights.add(read(tmp_path / batch / "checkpoints" / "last.h5").weights_sha256)
    assert len(weights) == 1


def test_a_complete_run_goes_on_with_other_options_or_says_how(quick, tmp_path):
    run = tmp_path / "run"
    assert training(*quick, "--model", "mlp", "--max-steps", "4", "--out", run).status == 0
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    mistake(
        training("--resume", "--epochs", "3", "--out", run),
        "as the schedule cosine depends on it; give --epochs 2, or start a new run from its weights: --init-from ",
    )
    (run / "metrics.jsonl").write_text("")  # killed before its last lines
    result = training("--resume", "--out", run)
    assert result.status == 0 and "already" not in result.out and "validation accuracy" in result.out
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]).keys() == json.loads(last).keys()
    result = training("--resume", "--max-steps", "6", "--out", run)
    assert result.status == 0 and "resuming from step-00000004.h5: epoch 1, step 4" in result.out, result.err


def test_a_checkpoint_under_the_name_of_another_step(trained):
    run = trained(LINEAR)
    newest = RunFolder(run).newest()
    newest.rename(newest.with_name("step-99999999.h5"))
    mistake(training("--resume", "--out", run), "holds step 9, so its name is wrong; rename or delete it")


def test_an_epoch_without_the_validation_of_the_others(trained):
    run = trained(LINEAR)
    newest = RunFolder(run).newest()
    checkpoint = read(newest)
    first = checkpoint.progress.epoch_events[0]
    later = {key: value for key, value in first.items() if not key.startswith("validation")} | {"epoch": 2}
    checkpoint.progress.events = [first | {"step": 8}, later]
    checkpoint.progress.epochs = 2
    assert checkpoint.progress.best("accuracy")["epoch"] == 1
    write(newest, checkpoint)
    assert read(newest).progress.best("loss")["epoch"] == 1


@pytest.mark.parametrize("name", ["log.txt", "times.json", "curves.svg", "config.toml", "checkpoints/best.h5"])
def test_all_that_a_training_writes_is_looked_at_before_anything_is_changed(trained, name):
    run = trained(LINEAR)
    (run / name).unlink(missing_ok=True)
    (run / name).mkdir()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    mistake(training("--resume", "--out", run, "--max-steps", "20"), str(run / name))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("forecast", ["--fit", "FILE", "--plot", "nowhere/x"]),
        ("forecast", ["--fit", "FILE", "--latency", "nan"]),
        ("forecast", ["--fit", "FILE", "--nodes", "1," + "9" * 400]),
        ("verify", ["--ranks", "1," + "9" * 5000]),
        ("verify", ["--launcher", "'"]),
        ("bench", ["--scaling", "1,2", "--launcher", ""]),
        ("reproduce", ["fast", "--seeds", "9" * 5000]),
        ("train", ["--walltime", "9" * 400]),
        ("train", ["--seed", "9" * 5000]),
        ("submit", ["a\nb"]),
        ("evaluate", ["/dev/null"]),
        ("predict", ["/dev/zero", "/dev/zero"]),
    ],
)
def test_odd_arguments_are_refused_in_a_line(name, words, tmp_path):
    (tmp_path / "FILE").write_text(json.dumps(MEASURED))
    mistake(command(name, *words, cwd=tmp_path))


MEASURED = {"ranks": 2, "nodes": 1, "parameters": 10, "exchange": {"milliseconds": {"exact": [1.0, 2.0]}}}


def test_numbers_of_many_digits_are_no_launcher_s():
    for digits in ("9" * 400, "9" * 5000, "\u0663"):
        assert detect({"PMI_RANK": digits, "PMI_SIZE": digits}) is None
    with pytest.raises(Exception, match="--launcher: no launcher on the PATH"):
        check_starter("verify", "")


def test_a_line_of_csv_without_end_costs_little(tmp_path):
    (tmp_path / "csv").mkdir()
    for split in ("train", "test"):
        (tmp_path / "csv" / f"mnist_{split}.csv.gz").write_bytes(gzip.compress(b"0" + b",0" * 3000**2))
    result = command("data", "prepare", tmp_path / "csv", "--out", tmp_path / "set")
    mistake(result, "values; at most 1,048,577 are read")


def test_files_of_an_export_are_named_by_the_step(trained, tmp_path):
    run = trained(LINEAR)
    newest = RunFolder(run).newest()
    evil = newest.with_name("evil\x1b]0;x.h5")
    shutil.copy(newest, evil)
    os.unlink(run / "checkpoints" / "best.h5")
    (run / "checkpoints" / "best.h5").symlink_to(evil.name)
    result = command("export", run, "--format", "npz", cwd=tmp_path)
    assert result.status == 0 and (tmp_path / "step-00000009.npz").exists() and "\x1b" not in result.out, result.err
