"""Survival: ranks die in random operations, and the others end with the same bits and the same record."""

import json
import os
import re
import signal
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from commands import command, training
from conftest import many, run, start
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from metrics import until_step
from threads import factors_sent

from dpcnn.runs.checkpoint import read
from dpcnn.runs.events import MEASURED


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """70 training images of 9 x 9 in three classes."""
    folder, rng = tmp_path_factory.mktemp("survival"), np.random.default_rng(5)
    arrays = {f"x_{split}": rng.integers(0, 256, (n, 9, 9), np.uint8) for split, n in (("train", 70), ("test", 4))}
    arrays |= {f"y_{split}": np.arange(n) % 3 for split, n in (("train", 70), ("test", 4))}
    np.savez(folder / "source.npz", **arrays)
    assert command("data", "prepare", folder / "source.npz", "--out", folder / "set", "--shards", "2").status == 0
    return folder / "set"


FLAGS = [
    "--model", "mlp", "--validation", "12", "--epochs", "2", "--batch", "20", "--microbatch", "4", "--lr", "0.01",
    "--drift-check-every", "2", "--checkpoint-every", "2", "--no-curves", "--stall-timeout", "0",
]  # fmt: skip


def numbers_apart(log: str) -> list[str]:
    return re.sub(r"/\S*/run|[\d.,]+|[0-9a-f]{64}|[ -]+", "#", log).splitlines()


def left_by(folder: Path) -> dict:
    """All that a run leaves, but for times, and for who has died."""
    last = read(folder / "checkpoints" / "last.h5")
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in event.items() if k not in MEASURED} for event in events if event["event"] != "death"]
    log = (folder / "log.txt").read_text()
    return {
        "weights": last.weights_sha256,
        "optimizer": {name: array.tobytes() for name, array in last.optimizer.items()},
        "events": kept,
        "log": [line for line in numbers_apart(log) if "rank" not in line],
    }


def trained(data: Path, folder: Path, ranks: list[int], dying: dict[int, int] | None = None, *more: str) -> dict:
    result = command("train", "--data", data, "--out", folder, *FLAGS, *more, ranks=ranks, dying=dying)
    assert result.status == 0, result.err
    return left_by(folder)


@st.composite
def deaths(draw) -> tuple[list[int], dict[int, int], bool, bool]:
    """Some hosts, for some ranks, but not for all, the operation in which each dies, whether hosts send factors, and
    whether each updates the whole vector."""
    hosts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda hosts: sum(hosts) > 1))
    victims = draw(st.lists(st.integers(0, sum(hosts) - 1), min_size=1, max_size=sum(hosts) - 1, unique=True))
    together = draw(st.booleans())
    first = draw(st.integers(1, 500))
    dying = {rank: draw(st.integers(first, first + 20) if together else st.integers(1, 500)) for rank in victims}
    return hosts, dying, draw(st.booleans()), draw(st.booleans())


def examples(number: int):
    return settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@examples(6)
@given(deaths())
def test_the_others_end_with_the_same_bits_and_record(data, case):
    check(data, *case)


@examples(4)
@given(deaths())
def test_a_death_may_come_while_a_checkpoint_is_written(data, case):
    with mock.patch("dpcnn.training.saving.LARGE", 0):
        check(data, *case)


@pytest.mark.slow
@examples(many(40))
@given(deaths())
def test_a_death_may_come_while_a_checkpoint_is_written_in_many_cases(data, case):
    with mock.patch("dpcnn.training.saving.LARGE", 0):
        check(data, *case)


@pytest.mark.slow
@examples(many(40))
@given(deaths())
def test_the_others_end_with_the_same_bits_and_record_in_many_cases(data, case):
    check(data, *case)


def check(data: Path, hosts: list[int], dying: dict[int, int], factors: bool, copied: bool) -> None:
    note(f"{hosts} {dying} {'factors' * factors} {'copied' * copied}")
    with tempfile.TemporaryDirectory() as work, factors_sent(factors, copied):
        assert trained(data, Path(work) / "run", hosts, dying) == undisturbed(data)


def undisturbed(data: Path, known: dict[Path, dict] = {}) -> dict:  # noqa: B006
    if data not in known:
        with tempfile.TemporaryDirectory() as work:
            known[data] = trained(data, Path(work) / "run", [1])
    return known[data]


def no_memory_to_share(comm):
    comm.barrier()
    return "warning: no memory to share"


def no_heartbeats(comm, hosts):
    comm.barrier()
    return mock.Mock(), [0]


@pytest.mark.parametrize(("victim", "last"), [(1, 16), (0, 116), (0, 130)])
def test_warnings_before_the_first_step_cost_no_line(data, tmp_path, victim, last):
    """A death before the run has a log, or in one of the first actions after its opening lines."""
    with (
        mock.patch("dpcnn.training.run.share_or_part", no_memory_to_share),
        mock.patch("dpcnn.cluster.watch.connect", no_heartbeats),
    ):
        flags = "--stall-timeout", "600"
        expected = trained(data, tmp_path / "whole" / "run", [4], None, *flags)
        found = trained(data, tmp_path / "other" / "run", [4], {victim: last}, *flags)
    assert found == expected
    assert [line for line in found["log"] if "heartbeats" in line]


@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)][: many(2)])
def test_three_real_ranks_survive_the_fourth(quick, tmp_path, victim):
    flags = [*quick, "--epochs", "20", "--model", "small-cnn", "--keep", "1"]
    job = start(4, "-m", "dpcnn.train", *flags, "--no-curves", "--out", tmp_path / "run", flags=["--with-ft", "ulfm"])
    until_step(tmp_path / "run", 20, job)
    os.kill(job.ranks()[victim], signal.SIGKILL)
    result = job.wait()
    assert result.status == 0, result.err
    assert "survives the death of ranks" in result.out
    assert re.search(rf"rank {victim} on \S+ died after step \d+: 3 ranks continue", result.out)
    assert "1 rank died during the run; 3 finished it" in result.out
    assert training(*flags, "--out", tmp_path / "undisturbed").status == 0
    assert left_by(tmp_path / "run")["weights"] == left_by(tmp_path / "undisturbed")["weights"]
    assert left_by(tmp_path / "run")["events"] == left_by(tmp_path / "undisturbed")["events"]


def test_messages_between_the_others_end_well():
    program = Path(__file__).parent / "ranks" / "die_between.py"
    result = run(4, program, flags=["--with-ft", "ulfm", "--mca", "btl", "self,tcp"])
    assert result.status == 0 and result.out.count("is content") == 2, result.out + result.err


def test_a_rank_may_die_before_the_ranks_have_numbers():
    result = run(3, Path(__file__).parent / "ranks" / "die_unnumbered.py", flags=["--with-ft", "ulfm"])
    assert result.status == 0 and result.out.count("is content") == 2, result.out + result.err


def test_a_run_stops_with_a_checkpoint_when_too_few_ranks_are_left(data, tmp_path):
    result = command(
        "train", "--data", data, "--out", tmp_path / "run", *FLAGS, "--min-ranks", "3", ranks=3, dying={1: 220}
    )
    assert result.status == 75 and "fewer than 3 ranks are left" in result.out
    best, last = result.out.splitlines()[-2:]
    assert re.fullmatch(r"best so far: validation accuracy 0\.\d{4}, epoch 1", best)
    assert last.endswith(f"; continue with: mpirun -n 2 dpcnn train --resume --out {tmp_path / 'run'}")
    assert command("train", "--resume", "--out", tmp_path / "run", "--no-curves", "--stall-timeout", "0").status == 0
    assert left_by(tmp_path / "run")["weights"] == undisturbed(data)["weights"]
