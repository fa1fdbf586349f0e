"""The drift guard: faults in a rank's memory are found, named, and kept out of checkpoints."""

import numpy as np
import pytest
from commands import training
from conftest import train
from metrics import events
from threads import factors_sent

from dpcnn.errors import DriftError
from dpcnn.training.drift import check_drift, tensor_hashes
from dpcnn.training.trainer import Trainer


def step_with_a_fault(trainer, step=Trainer.train_step):
    commit = step(trainer)

    def commit_with_a_fault():
        commit()
        if trainer.progress.step == 4 and trainer.comm.rank == 1:
            trainer.network.views(trainer.params)["linear1.w"].view("u4")[3, 5] ^= 1  # one bit

    return commit_with_a_fault


def test_hashes_tell_tensors_apart():
    one = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}
    two = {"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}
    assert tensor_hashes(one) == tensor_hashes(two)
    two["b"][1, 1] = np.nextafter(np.float32(1), np.float32(2))
    changed = tensor_hashes(two)
    assert changed["a"] == tensor_hashes(one)["a"] and changed["b"] != tensor_hashes(one)["b"]


def test_the_odd_ranks_are_named():
    good, bad = {"a": "0", "b": "1"}, {"a": "0", "b": "2"}
    check_drift([good, None, good], 7)
    check_drift([good], 7)
    with pytest.raises(DriftError, match=r"step 7: rank 3 of 4 sees other parameters than the rest, first in b:"):
        check_drift([good, None, good, bad], 7)
    with pytest.raises(DriftError, match=r"step 7: ranks 1, 2 of 5 see other parameters"):
        check_drift([good, bad, bad, good, good], 7)


@pytest.mark.parametrize(("nodes", "guard"), [([1, 1, 1], "2"), ([3], "2"), ([3], "0")], ids=["nodes", "ranks", "late"])
def test_a_flipped_bit_ends_the_run_before_it_reaches_a_checkpoint(nodes, guard, quick, tmp_path, monkeypatch):
    """Under exact exchange a node has one copy, so nodes are compared; under allreduce, ranks.

    (An exact exchange overwrites a foreign element at the next step: there the fault must be met at once.)
    """
    folder = tmp_path / "run"
    exchange = ["--exchange", "allreduce"] if nodes == [3] else []
    flags = [*quick, *exchange, "--drift-check-every", guard, "--checkpoint-every", "3", "--out", folder]
    monkeypatch.setattr(Trainer, "train_step", step_with_a_fault)
    result = training(*flags, ranks=nodes)
    assert result.status == 1
    step = 4 if guard == "2" else 6
    (line,) = result.errors
    assert f"step {step}: rank 1 of 3 sees other parameters than the rest, first in" in line
    assert guard == "0" or "first in linear1.w" in line
    assert sorted(path.name for path in (folder / "checkpoints").glob("step*")) == ["step-00000003.h5"]
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", ["v", "ema"])
def test_a_flipped_bit_of_any_vector_is_found_if_each_node_has_a_copy(name, quick, tmp_path, monkeypatch):
    step, folder = Trainer.train_step, tmp_path / "run"

    def step_with_a_flip(trainer):
        commit = step(trainer)
        if trainer.progress.step == 3 and trainer.comm.rank == 1:
            trainer.state.next[name].view("u4")[7] ^= 1
        return commit

    monkeypatch.setattr(Trainer, "train_step", step_with_a_flip)
    with factors_sent(False, copied=True):
        result = training(*quick, "--ema-decay", "0.9", "--checkpoint-every", "2", "--out", folder, ranks=[1, 1, 1])
    assert result.status == 1
    (line,) = result.errors
    assert f"step 4: rank 1 of 3 sees other parameters than the rest, first in {name}:" in line
    assert sorted(path.name for path in (folder / "checkpoints").glob("step*")) == ["step-00000002.h5"]


def test_hashes_are_recorded_under_mpirun(quick, tmp_path):
    assert train(2, *quick, "--drift-check-every", "5", "--out", tmp_path / "run").status == 0
    found = [event for event in events(tmp_path / "run") if event["event"] == "hash"]
    assert [event["step"] for event in found] == [5, 10]
    assert set(found[0]["parameters"]) == {"conv2d1.w", "conv2d2.w", "conv2d3.w", "linear1.w", "linear2.w"}
