"""Checkpoints that a thread writes while training continues: the same files, the same errors, and no file in part."""

import errno
import threading

import numpy as np
import pytest
from commands import command, training
from metrics import events
from test_survival import left_by
from threads import Died, factors_sent

from dpcnn.config import Config
from dpcnn.data.dataset import load
from dpcnn.data.shards import read_manifest
from dpcnn.errors import DivergenceError
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import sums_held
from dpcnn.runs import checkpoint as checkpoints
from dpcnn.runs.checkpoint import read
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import MEASURED
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.unkept import Unkept
from dpcnn.training.saving import Saving, vectors
from dpcnn.training.state import PARAMETERS, State
from dpcnn.training.trainer import Trainer

LIMIT = 20.0  # seconds: then the thread waits for a training that waits for the thread


@pytest.fixture
def flags(quick) -> list[str]:
    """A training of 40 steps in two epochs, with a checkpoint every 8 steps."""
    return [*quick, "--model", "mlp", "--batch", "30", "--microbatch", "8", "--checkpoint-every", "8", "--keep", "9"]


@pytest.fixture
def large(monkeypatch) -> None:
    """All networks count as large."""
    monkeypatch.setattr("dpcnn.training.saving.LARGE", 0)


class Gate:
    """Holds back the writing of the checkpoint of a step, until it is opened.

    Attributes:
        error: what ends the first writing then; None: it succeeds.
    """

    def __init__(self, monkeypatch, step, error=None):
        self.step, self.error, self.opened, self.write = step, error, threading.Event(), checkpoints.write_into
        monkeypatch.setattr(checkpoints, "write_into", self)

    def __call__(self, file, checkpoint):
        if checkpoint.progress.step == self.step:
            assert self.opened.wait(LIMIT), "training has not gone on"
            error, self.error = self.error, None
            if error:
                file.write(b"the first bytes")
                raise error
        self.write(file, checkpoint)

    def open(self, *_):
        self.opened.set()


def after_step(monkeypatch, number, do, rank=0):
    """Let a rank do something after this number of steps."""
    take = Trainer.train_step

    def train_step(trainer):
        if trainer.progress.step == number and getattr(trainer.comm, "number", 0) == rank:
            do(trainer)
        return take(trainer)

    monkeypatch.setattr(Trainer, "train_step", train_step)


def die(trainer):
    """Let the rank of a trainer die."""
    trainer.comm._board.job.dying[trainer.comm.number] = 0
    raise Died


def contents(folder) -> dict:
    """All that the checkpoints of a run contain, but for times, and for who has died."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("*.h5")):
        each = read(path)
        told = [event for event in each.progress.events if event["event"] != "death"]
        kept = [{k: v for k, v in event.items() if k not in MEASURED} for event in told]
        optimizer = {name: array.tobytes() for name, array in each.optimizer.items()}
        progress = each.progress.step, each.progress.epochs, each.progress.metrics
        found[path.name] = each.weights_sha256, optimizer, progress, kept
    return found


def unfinished(folder) -> list:
    return list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("nodes", "more"),
    [([1], []), ([3], ["--ema-decay", "0.9"]), ([2, 1], ["--keep", "2"]), ([2], ["--exchange", "allreduce"])],
    ids=str,
)
def test_training_continues_and_the_files_are_those_of_a_run_that_waits(
    flags, tmp_path, monkeypatch, request, nodes, more
):
    assert training(*flags, *more, "--out", tmp_path / "waits", ranks=nodes).status == 0
    request.getfixturevalue("large")
    gate = Gate(monkeypatch, 8)
    after_step(monkeypatch, 15, gate.open)
    assert training(*flags, *more, "--out", tmp_path / "run", ranks=nodes).status == 0
    assert contents(tmp_path / "run") == contents(tmp_path / "waits")
    assert not unfinished(tmp_path / "run")


def test_a_small_network_waits_for_its_checkpoint(flags, tmp_path, monkeypatch):
    complete = []
    after_step(
        monkeypatch, 8, lambda trainer: complete.append((tmp_path / "run/checkpoints/step-00000008.h5").exists())
    )
    assert training(*flags, "--max-steps", "9", "--out", tmp_path / "run", ranks=2).status == 0
    assert complete == [True]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("failing", "left"), [(8, []), (16, [8]), (20, [8, 16])], ids=["first", "second", "epoch"])
@pytest.mark.parametrize("nodes", [[1], [1, 2]], ids=str)
def test_a_write_that_fails_ends_the_run_before_anything_else_is_saved_or_recorded(
    flags, tmp_path, monkeypatch, large, nodes, failing, left
):
    folder = tmp_path / "run"
    gate = Gate(monkeypatch, failing, FULL)
    if failing == 20:  # the end of the first epoch
        gate.open()
    after_step(monkeypatch, failing + 2, gate.open)
    result = training(*flags, "--keep", "1", "--out", folder, ranks=nodes)
    assert result.status == 2 and len(result.errors) == 1, result.err
    assert f"step-{failing:08d}.h5: can't write the checkpoint (No space left on device)" in result.errors[0]
    assert "the one before it is untouched: make room, then continue with --resume" in result.errors[0]
    assert list(contents(folder)) == (["last.h5", f"step-{left[-1]:08d}.h5"] if left else [])
    assert not unfinished(folder)
    assert not [event for event in events(folder) if event["event"] == "epoch"]
    if left:
        assert read(folder / "checkpoints" / "last.h5").progress.step == left[-1]


def test_a_stop_waits_for_the_checkpoint_and_writes_its_own(flags, tmp_path, monkeypatch, large):
    gate = Gate(monkeypatch, 8)
    after_step(monkeypatch, 11, lambda trainer: (trainer.stop.ask("by this test"), gate.open()), rank=1)
    result = training(*flags, "--out", tmp_path / "run", ranks=3)
    assert result.status == 75 and "stopped at step 12: by this test (rank 1)" in result.out
    assert list(contents(tmp_path / "run")) == ["last.h5", "step-00000008.h5", "step-00000012.h5"]
    monkeypatch.undo()
    assert training("--resume", "--out", tmp_path / "run", ranks=2).status == 0
    assert training(*flags, "--out", tmp_path / "whole").status == 0
    assert left_by(tmp_path / "run")["weights"] == left_by(tmp_path / "whole")["weights"]


def test_an_error_of_the_training_lets_the_writing_end(flags, tmp_path, monkeypatch, large):
    gate = Gate(monkeypatch, 8)

    def fail(trainer):
        threading.Timer(0, gate.open).start()
        raise DivergenceError("the loss is not finite")

    after_step(monkeypatch, 11, fail)
    result = training(*flags, "--out", tmp_path / "run")
    assert result.status == 2 and result.errors == ["dpcnn: error: the loss is not finite"]
    assert list(contents(tmp_path / "run")) == ["last.h5", "step-00000008.h5"] and not unfinished(tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(flags, tmp_path, monkeypatch, large):
    take = Saving.begin

    def begin(saving, team, samples, since):
        if team.state.progress.step == 16:
            team.state.now[PARAMETERS][7] = np.nan
        return take(saving, team, samples, since)

    monkeypatch.setattr(Saving, "begin", begin)
    result = training(*flags, "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and len(result.errors) == 1, result.err
    assert list(contents(tmp_path / "run")) == ["last.h5", "step-00000008.h5"]


def survived(flags, folder, nodes) -> dict:
    result = command("train", *flags, "--no-curves", "--stall-timeout", "0", "--out", folder, ranks=nodes, dying={})
    assert result.status == 0, result.err
    assert not unfinished(folder)
    return left_by(folder)


@pytest.fixture(scope="module")
def undisturbed(quick, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    flags = [*quick, "--model", "mlp", "--batch", "30", "--microbatch", "8", "--checkpoint-every", "8", "--keep", "9"]
    assert training(*flags, "--out", folder).status == 0
    return {"run": left_by(folder), "checkpoints": contents(folder)}


@pytest.mark.parametrize("nodes", [[3], [1, 1]], ids=str)
def test_if_the_rank_that_writes_dies_the_others_write_a_checkpoint_at_once(
    flags, tmp_path, monkeypatch, large, undisturbed, nodes
):
    """A rank's thread ends with it, and leaves a file in part. With a node of its own, the state is lost, too."""
    folder, gate = tmp_path / "run", Gate(monkeypatch, 8, SystemExit())

    def leave(trainer):
        (folder / "checkpoints" / ".step-00000008.h5.0123456789abcdef.part").write_bytes(b"the first bytes")
        gate.open()
        die(trainer)

    after_step(monkeypatch, 11, leave)
    assert survived(flags, folder, nodes) == undisturbed["run"]
    expected = dict(undisturbed["checkpoints"])
    if nodes == [3]:
        del expected["step-00000008.h5"]
    written = contents(folder)
    assert written.keys() - expected.keys() == ({"step-00000011.h5"} if nodes == [3] else set())


def test_the_death_of_another_rank_does_not_change_what_is_being_written(
    flags, tmp_path, monkeypatch, large, undisturbed
):
    gate = Gate(monkeypatch, 8)
    after_step(monkeypatch, 10, die, rank=2)
    after_step(monkeypatch, 15, gate.open)
    assert survived(flags, tmp_path / "run", [3]) == undisturbed["run"]
    assert contents(tmp_path / "run") == undisturbed["checkpoints"]


def test_ranks_that_go_back_wait_for_the_checkpoint_that_is_being_written(
    flags, tmp_path, monkeypatch, large, undisturbed
):
    gate, join, steps = Gate(monkeypatch, 8), Saving.join, []
    for step in range(12):
        after_step(monkeypatch, step, lambda trainer: steps.append(trainer.progress.step))

    def open_and_join(saving):
        if saving._comm.number == 0:
            gate.open()
        join(saving)

    monkeypatch.setattr(Saving, "join", open_and_join)
    after_step(monkeypatch, 10, die, rank=1)
    assert survived(flags, tmp_path / "run", [1, 1]) == undisturbed["run"]
    assert steps == [*range(11), *range(8, 12)]
    assert contents(tmp_path / "run") == undisturbed["checkpoints"]


def test_steps_never_write_to_vectors_that_are_held():
    state = State(["m"], 5, SerialComm(), slice(0, 5), spare=True)
    state.renew(SerialComm())
    state.hold(0)
    held, values = state.now, 0
    for number in range(1, 40):
        for vector in state.next.values():
            vector[:] = number
        state.commit()
        assert all((vector == number).all() for vector in state.now.values())
        assert all((vector == values).all() for vector in held.values())
        if number % 5 < 2:  # also two checkpoints with no step, and with one step, between them
            for _ in range(1 + number % 3):
                state.release()
                state.hold(0)
            held, values = state.now, number
        else:
            assert state.now is not held and state.next is not held


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("least", [0, 1 << 24])
def test_all_vectors_of_a_run_in_memory_are_counted(small, tmp_path, monkeypatch, least, ema_decay):
    monkeypatch.setattr("dpcnn.training.saving.LARGE", least)
    config, samples = Config(model="mlp", ema_decay=ema_decay), load(small, "train", SerialComm())
    network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    for run in (RunFolder(tmp_path / "run"), Unkept()):
        state = Trainer(SerialComm(), config, network, samples, run, Reporter()).state
        sets = [state.now, state.next, *state._free]
        assert len(sets) == (3 if run.kept and not least else 2)
        elements = sum(vector.size for each in sets for vector in each.values())
        assert elements == vectors(config, run, network.size) * network.size


@pytest.mark.parametrize("least", [0, 1 << 24])
def test_a_training_is_refused_if_its_third_set_of_vectors_does_not_fit(small, quick, tmp_path, monkeypatch, least):
    manifest = read_manifest(small)
    network = Config(model="mlp").network(manifest.image_shape, manifest.classes)
    more = sums_held(12, 1) - 1
    free = network.memory(8) + 4 * (6 + more) * network.size  # of Adam, two sets of three vectors
    monkeypatch.setattr("dpcnn.training.saving.LARGE", least)
    monkeypatch.setattr("dpcnn.nn.network.memory_left", lambda: free)
    flags = ["--model", "mlp", "--microbatch", "8", "--epochs", "1"]
    result = training(*quick, *flags, "--out", tmp_path / "run", ranks=[1])
    if least:
        assert result.status == 0, result.err
    else:
        assert result.status == 2 and "give a smaller --microbatch" in result.errors[0]


@pytest.mark.parametrize(("copied", "sums"), [(False, 3), (True, 4)])
def test_the_sums_that_a_node_receives_are_counted(small, quick, tmp_path, monkeypatch, copied, sums):
    """Microbatches 0 to 5 on one node and 6 to 11 on the other are two subtrees each, of half of the vector or all.
    Both nodes hold three more vectors while they add up their own."""
    manifest = read_manifest(small)
    network = Config(model="mlp").network(manifest.image_shape, manifest.classes)
    flags = ["--model", "mlp", "--microbatch", "8", "--epochs", "1", "--max-steps", "1"]
    least = network.memory(8) + 4 * (6 + sums + 3) * network.size
    with factors_sent(False, copied):
        for free, status in ((least - 1, 2), (least, 0)):
            monkeypatch.setattr("dpcnn.nn.network.memory_left", lambda free=free: free)
            result = training(*quick, *flags, "--out", tmp_path / str(free), ranks=[1, 1])
            assert result.status == status, result.err


def test_no_line_is_printed_twice_when_the_next_ranks_die_in_turn(flags, tmp_path, monkeypatch, large, undisturbed):
    """Rank 0 dies while all wait for its checkpoint, and rank 1 as soon as it has taken over."""
    finish, after = Trainer.finish_saving, Trainer.next_action

    def finish_saving(trainer):
        if trainer.comm.number == 0 and trainer.progress.epochs == 1:
            die(trainer)
        commit = finish(trainer)
        trainer.last_words = trainer.comm.number == trainer.comm.members[0] == 1
        return commit

    def next_action(trainer):
        if getattr(trainer, "last_words", False) and trainer.state.holder is None:
            die(trainer)
        return after(trainer)

    monkeypatch.setattr(Trainer, "finish_saving", finish_saving)
    monkeypatch.setattr(Trainer, "next_action", next_action)
    assert survived(flags, tmp_path / "run", [3]) == undisturbed["run"]
