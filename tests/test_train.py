"""Training: the same bits on any ranks, also under mpirun; uneven shapes, resuming, evaluating."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import command, training
from conftest import ROOT, run, train
from metrics import events, timeless

from dpcnn.base.timing import PHASES
from dpcnn.runs.checkpoint import read, weights_sha256


def trained(ranks, *arguments):
    """A run that ends well, on threads as ranks."""
    result = training(*arguments, ranks=ranks)
    assert result.status == 0, result.err
    return result


@pytest.fixture(scope="module")
def alone(quick, tmp_path_factory):
    """One run on one rank, to hold the others against."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    result = run(1, "-m", "dpcnn.train", *quick, "--out", folder)
    assert result.status == 0, result.err
    return folder, result


def test_a_run_leaves_what_it_promises(alone):
    folder, result = alone
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.toml", "metrics.jsonl", "log.txt", "checkpoints", "curves.png", "curves.svg", "times.json"
    }  # fmt: skip
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {
        "step-00000007.h5", "step-00000014.h5", "last.h5", "best.h5"
    }  # fmt: skip
    found = events(folder)
    epochs = [event for event in found if event["event"] == "epoch"]
    assert [(event["epoch"], event["step"]) for event in epochs] == [(1, 7), (2, 14)]
    assert set(epochs[0]) == {
        "event", "epoch", "step", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
        "validation_top5", "validation_precision", "validation_recall", "validation_f1",
        "learning_rate", "seconds", "images_per_second", "peak_memory_mb",
    }  # fmt: skip
    end = found[-1]
    assert set(end) == {"event", "steps", "seconds", "weights_sha256", "best_validation_accuracy"}
    assert end["steps"] == 14
    assert end["best_validation_accuracy"] == max(event["validation_accuracy"] for event in epochs) > 0.5

    checkpoint = read(folder / "checkpoints" / "last.h5")
    vector = np.concatenate([array.ravel() for array in checkpoint.parameters.values()])
    assert weights_sha256(vector) == end["weights_sha256"] == checkpoint.weights_sha256
    times = json.loads((folder / "times.json").read_text())
    assert len(times["ranks"]) == 1 and times["ranks"][0]["peak_memory_mb"] >= epochs[1]["peak_memory_mb"] > 30
    assert set(times["ranks"][0]["seconds"]) == set(PHASES)
    assert 0 < times["ranks"][0]["seconds"]["forward"] <= end["seconds"]
    last_line = result.out.splitlines()[-1]
    for fact in (f"{epochs[-1]['validation_accuracy']:.4f}", "images/s", str(folder), end["weights_sha256"]):
        assert fact in last_line
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "curves.svg").read_text()
    assert last_line in (folder / "log.txt").read_text()


@pytest.mark.parametrize("nodes", [[2], [3], [7], [1, 1, 1], [2, 1], [1, 3], [3, 2, 2]], ids=str)
def test_ranks_and_nodes_change_nothing(alone, quick, tmp_path, nodes):
    """600 images in batches of 90 and microbatches of 16: neither divides, nor do the ranks."""
    trained(nodes, *quick, "--out", tmp_path / "run")
    check_same(tmp_path / "run", alone[0])


def check_same(folder, other):
    """The results of two runs, with the optimizer's state, are the same."""
    assert timeless(folder) == timeless(other)
    ours, theirs = (read(path / "checkpoints" / "last.h5") for path in (folder, other))
    for name in ("m", "v"):
        np.testing.assert_array_equal(ours.optimizer[name], theirs.optimizer[name])


@pytest.mark.parametrize(("ranks", "nodes"), [(2, None), (4, None), (3, "2,1")])
def test_ranks_and_nodes_change_nothing_under_mpirun(alone, quick, tmp_path, ranks, nodes):
    result = train(ranks, *quick, "--out", tmp_path / "run", env={"DPCNN_PRETEND_NODES": nodes} if nodes else {})
    assert result.status == 0, result.err
    check_same(tmp_path / "run", alone[0])


def test_without_shared_memory_everything_goes_over_mpi_and_changes_nothing(alone, quick, tmp_path):
    result = run(3, Path(__file__).parent / "ranks" / "no_shared_memory.py", *quick, "--out", tmp_path / "run")
    assert result.status == 0, result.err
    (warning,) = [line for line in result.out.splitlines() if line.startswith("warning: ")]
    assert "can't share memory (/proc/" in warning and "everything goes over MPI" in warning
    assert timeless(tmp_path / "run") == timeless(alone[0])


@pytest.mark.slow
def test_the_promise_with_everything_random_running_clipped_and_averaged(quick, tmp_path):
    """The recipe has batch normalisation, changed images, dropout and averaged weights; one run is cut in two."""

    def run_of(ranks, *arguments, **options):
        result = train(ranks, *arguments, **options)
        assert result.status == 0, result.err

    flags = ["--recipe", "accurate", *quick, "--max-grad-norm", "1", "--ema-decay", "0.6", "--test"]
    run_of(1, *flags, "--out", tmp_path / "one")
    again = ["--recipe", tmp_path / "one" / "config.toml", "--test"]
    run_of(3, *again, "--out", tmp_path / "nodes", env={"DPCNN_PRETEND_NODES": "1,2"})
    run_of(4, *flags, "--out", tmp_path / "cut", "--max-steps", "10")
    run_of(3, "--resume", "--out", tmp_path / "cut", "--max-steps", "0", "--test")
    assert timeless(tmp_path / "one") == timeless(tmp_path / "nodes") == timeless(tmp_path / "cut")
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.h5"
    found, told = json.loads(run(2, "-m", "dpcnn.evaluate", checkpoint, "--json").out), events(tmp_path / "one")[-2]
    assert (found["loss"], found["accuracy"]) == (told["test_loss"], told["test_accuracy"])
    weights = read(checkpoint)
    assert weights.weights_sha256 == events(tmp_path / "cut")[-1]["weights_sha256"]
    assert set(weights.optimizer) == {"m", "v", "ema"}


FEW = """
max_grad_norm = 0.01
optimizer = "sgd"
lr = 0.1
[[layers]]
kind = "scale"
[[layers]]
kind = "avgpool2d"
kernel_size = 4
[[layers]]
kind = "flatten"
[[layers]]
kind = "linear"
"""


def test_clipping_with_fewer_blocks_of_parameters_than_ranks(tmp_path):
    """490 parameters are less than one block of the exchange: on 3 ranks, two have no element to update."""
    (tmp_path / "few.toml").write_text(FEW)
    hashes = []
    for ranks in (1, 2, 3):
        trained(ranks, "--recipe", tmp_path / "few.toml", "--max-steps", "20", "--out", tmp_path / str(ranks))
        hashes.append(events(tmp_path / str(ranks))[-1]["weights_sha256"])
    trained(
        1, "--recipe", tmp_path / "few.toml", "--max-steps", "20", "--max-grad-norm", "0", "--out", tmp_path / "free"
    )
    assert len(set(hashes)) == 1 and events(tmp_path / "free")[-1]["weights_sha256"] not in hashes


def test_a_mapped_data_set_changes_nothing(alone, quick, npz, tmp_path):
    folder = tmp_path / "contiguous"
    flags = ["--name", "small", "--contiguous", "--shards", "4"]
    made = command("data", "prepare", npz, "--out", folder, *flags, ranks=2)
    assert made.status == 0, made.err
    trained(3, *quick, "--data", folder, "--out", tmp_path / "run")
    assert timeless(tmp_path / "run") == timeless(alone[0])
    ours, theirs = (read(path / "checkpoints" / "last.h5") for path in (tmp_path / "run", alone[0]))
    assert ours.data == theirs.data


def test_without_mpirun(alone, quick, tmp_path):
    result = train(0, *quick, "--out", tmp_path / "run")
    assert result.status == 0, result.err
    assert timeless(tmp_path / "run") == timeless(alone[0])


def test_more_ranks_than_microbatches(quick, tmp_path):
    """A batch of 20 in microbatches of 16 has two, then one: ranks 2 and 3 never have any."""
    hashes = []
    for ranks in (1, 4):
        folder = tmp_path / str(ranks)
        trained(ranks, *quick, "--out", folder, "--batch", "20", "--max-steps", "5", "--validation", "3")
        hashes.append(events(folder)[-1]["weights_sha256"])
    assert hashes[0] == hashes[1]


def test_allreduce_is_close(alone, quick, tmp_path):
    result = trained(3, *quick, "--out", tmp_path / "run", "--exchange", "allreduce")
    assert "the last bits of the result depend on the number of ranks" in result.out
    ours, theirs = (read(path / "checkpoints" / "last.h5").parameters for path in (tmp_path / "run", alone[0]))
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0.02, atol=0.02)


def test_resuming_in_mid_epoch_on_other_numbers_of_ranks(alone, quick, tmp_path):
    folder = tmp_path / "run"
    trained(2, *quick, "--out", folder, "--max-steps", "3")
    trained(4, "--resume", "--out", folder, "--max-steps", "9")
    trained(3, "--resume", folder / "checkpoints" / "last.h5", "--max-steps", "0")
    assert timeless(folder) == timeless(alone[0])
    assert (folder / "checkpoints" / "best.h5").resolve().name == (alone[0] / "checkpoints" / "best.h5").resolve().name


def test_more_epochs_are_as_if_asked_for_at_once(quick, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    trained(2, *quick, "--schedule", "exponential", "--epochs", "3", "--out", once)
    trained(1, *quick, "--schedule", "exponential", "--epochs", "1", "--out", twice)
    trained(2, "--resume", "--out", twice, "--epochs", "3")
    assert timeless(once) == timeless(twice)


def test_more_epochs_would_bend_a_cosine(alone):
    result = training("--resume", "--out", alone[0], "--epochs", "3", ranks=2)
    assert result.status == 2
    assert (
        result.errors[0].startswith("dpcnn: error: --epochs: ")
        and "with 2, and can't be resumed with 3" in result.errors[0]
    )


def test_checkpoints_every_n_steps_and_no_more_than_are_kept(quick, tmp_path):
    folder = tmp_path / "run"
    trained(2, *quick, "--out", folder, "--checkpoint-every", "2", "--keep", "2", "--lr", "1e-9")
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    best = [event for event in events(folder) if event["event"] == "epoch"]
    best_step = max(best, key=lambda event: (event["validation_accuracy"], -event["validation_loss"]))["step"]
    assert names == sorted({"best.h5", "last.h5", "step-00000012.h5", "step-00000014.h5", f"step-{best_step:08d}.h5"})


def test_resume_takes_up_a_run_that_has_no_checkpoint_yet(alone, quick, tmp_path):
    folder = tmp_path / "run"
    trained(1, *quick, "--out", folder, "--max-steps", "1")
    shutil.rmtree(folder / "checkpoints")
    result = trained(2, "--resume", "--out", folder, "--max-steps", "0")
    assert "no checkpoint yet: starting from step 0" in result.out
    assert timeless(folder) == timeless(alone[0])


def test_going_back_needs_a_new_folder(alone, quick, tmp_path):
    folder = tmp_path / "run"
    trained(1, *quick, "--out", folder)
    earlier = folder / "checkpoints" / "step-00000007.h5"
    result = training("--resume", earlier, ranks=2)
    assert result.status == 2
    assert result.errors == [
        f"dpcnn: error: {earlier}: the run has continued to step-00000014.h5; "
        "to start again from here, give a new --out"
    ]
    result = training("--resume", folder)
    assert result.status == 2 and f"to continue its run: --resume --out {folder}" in result.errors[0]
    trained(2, "--resume", earlier, "--out", tmp_path / "other")
    assert timeless(tmp_path / "other") == timeless(alone[0])


def test_the_run_s_config_is_a_recipe(alone, tmp_path):
    trained(2, "--recipe", alone[0] / "config.toml", "--out", tmp_path / "run")
    assert timeless(tmp_path / "run") == timeless(alone[0])


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_evaluate_counts_every_sample_once(alone, ranks):
    folder, _ = alone
    checkpoint = folder / "checkpoints" / "last.h5"
    found = {}
    for split in ("test", "validation"):
        result = command("evaluate", checkpoint, "--split", split, "--json", ranks=ranks)
        assert result.status == 0, result.err
        found[split] = json.loads(result.out)
    epoch = next(event for event in reversed(events(folder)) if event["event"] == "epoch")
    assert found["validation"]["samples"] == 100
    assert found["validation"]["accuracy"] == epoch["validation_accuracy"]
    assert found["validation"]["loss"] == epoch["validation_loss"]
    assert found["test"]["samples"] == 150 and found["test"]["correct"] == round(150 * found["test"]["accuracy"])
    text = command("evaluate", checkpoint, ranks=ranks).out
    assert f"accuracy {found['test']['accuracy']:.4f} ({found['test']['correct']} of 150)" in text


def test_the_test_samples_after_each_epoch(quick, tmp_path):
    result = trained(3, *quick, "--test", "--out", tmp_path / "run", "--model", "small-cnn")
    first, last = (event for event in events(tmp_path / "run") if event["event"] == "epoch")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.h5"
    found = json.loads(command("evaluate", checkpoint, "--json").out)
    assert (last["test_loss"], last["test_accuracy"]) == (found["loss"], found["accuracy"])
    assert first["test_loss"] > last["test_loss"]
    assert f"; test accuracy {found['accuracy']:.4f}, loss {found['loss']:.4f}; training accuracy " in result.out
    assert f", test accuracy {found['accuracy']:.4f}, " in result.out.splitlines()[-1]


def test_a_run_that_gets_no_better_ends_early(quick, tmp_path):
    flags = [*quick, "--model", "mlp", "--lr", "1e-12", "--schedule", "constant", "--epochs", "9", "--patience", "2"]
    result = trained(2, *flags, "--out", tmp_path / "run")
    assert [event["epoch"] for event in events(tmp_path / "run") if event["event"] == "epoch"] == [1, 2, 3]
    assert "(best " in result.out.splitlines()[-1] and ", epoch 1)" in result.out.splitlines()[-1]
    resumed = trained(3, "--resume", "--out", tmp_path / "run", "--patience", "3")
    assert [event["epoch"] for event in events(tmp_path / "run") if event["event"] == "epoch"] == [1, 2, 3, 4], (
        resumed.out
    )


def test_a_warm_up_of_more_than_half_of_the_run_is_told_at_its_start(quick, tmp_path):
    told = (
        "warning: the learning rate rises during the first 8 steps (--warmup), but the run has 14 steps; "
        "give --epochs 3 or more, or --warmup 2\n"
    )
    flags = [*quick, "--model", "mlp", "--schedule", "constant"]
    assert told in trained(2, *flags, "--warmup", "8", "--max-steps", "3", "--out", tmp_path / "late").out
    resumed = trained(1, "--resume", "--max-steps", "4", "--out", tmp_path / "late").out
    assert "the learning rate rises" not in resumed
    fit = trained(1, *flags, "--warmup", "8", "--epochs", "3", "--max-steps", "1", "--out", tmp_path / "fit").out
    assert "the learning rate rises" not in fit


def test_ranks_without_a_microbatch_are_told_at_the_start(quick, tmp_path):
    told = "warning: a batch has 2 microbatches, so 1 of 3 ranks has no gradient to compute; give a larger --batch"
    flags = [*quick, "--model", "mlp", "--microbatch", "45", "--max-steps", "1", "--out"]
    assert told in trained(3, *flags, tmp_path / "three").out
    assert "no gradient to compute" not in trained(2, *flags, tmp_path / "two").out


def test_without_validation_the_last_epoch_is_the_best(quick, tmp_path):
    result = trained(2, *quick, "--validation", "0", "--model", "mlp", "--out", tmp_path / "run")
    assert "700 images to train, 0 to validate" in result.out
    assert result.out.splitlines()[-1].startswith("train accuracy ")
    assert not [event for event in events(tmp_path / "run") if "validation_loss" in event]
    checkpoints = tmp_path / "run" / "checkpoints"
    assert (checkpoints / "best.h5").resolve() == (checkpoints / "last.h5").resolve()


@pytest.mark.slow
def test_every_recipe_keeps_the_promise():
    alone, *others = (run(ranks, Path(__file__).parent / "ranks" / "check_recipes.py") for ranks in (1, 3))
    names = [line.split()[0] for line in alone.out.splitlines()]
    assert names == sorted(path.stem for path in (ROOT / "dpcnn" / "recipes").glob("*.toml")), alone.err
    assert len({line.split()[2] for line in alone.out.splitlines()}) == len(names)
    for other in others:
        assert other.out == alone.out, other.err


def test_any_hdf5_tool_opens_a_checkpoint(alone):
    with h5py.File(alone[0] / "checkpoints" / "last.h5") as file:
        assert next(iter(file["parameters"])) == "conv2d1.w"
        assert file["parameters/conv2d1.w"].shape == (3, 3, 1, 16)
        assert json.loads(file["state"][()].tobytes())["progress"]["step"] == 14


def test_help_is_printed_once():
    result = training("--help", ranks=3)
    assert result.status == 0
    assert result.out.count("usage:") == 1 and "--microbatch N" in result.out
