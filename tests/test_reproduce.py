"""Recipes of published networks: the table says what the runs said."""

import json
import re
from math import ceil
from unittest import mock

import pytest
from commands import command
from conftest import run

from dpcnn.evidence.published import PUBLISHED, PublishedResult, compare
from dpcnn.recipe import read_recipe


def test_a_row_of_the_table():
    runs = [
        [{"epoch": e, "test_accuracy": accuracy + e / 100, "seconds": 2.0} for e in (1, 2, 3)]
        for accuracy in (0.5, 0.7, 0.6)
    ]
    row = compare("mlp-adam", PublishedResult("test", 2, 0.9, "a book"), runs)
    assert row == (
        "mlp-adam", "adam", "test, epoch 2", "0.9000 (a book)", "0.6200", "0.5200 0.7200 0.6200", "4 s", "", ""
    )  # fmt: skip
    assert compare("mlp-adam", PublishedResult("test", 3, 0.9), runs[:1], runs)[-2:] == (
        "0.6300",
        "0.5300 0.7300 0.6300",
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_lasts_as_long_as_its_published_figure(name):
    config = read_recipe(name)
    assert config.network((28, 28, 1), 10).size > 0
    steps_per_epoch = ceil((60_000 - config.validation) / config.batch)
    last = ceil(min(config.epochs * steps_per_epoch, config.max_steps or 10**9) / steps_per_epoch)
    assert max(published.epoch for published in PUBLISHED[name]) == last
    assert (config.validation > 0) or {published.kind for published in PUBLISHED[name]} == {"test"}


def test_it_runs_what_it_is_asked_for(tmp_path):
    words = ["mlp-adam", "--seeds", "3,4", "--ranks", "1", "--max-steps", "30", "--out", tmp_path / "results.md"]
    runs = tmp_path / "runs"
    (runs / "mlp-adam-3" / "checkpoints").mkdir(parents=True)  # killed at its start
    result = run(0, "-m", "dpcnn.reproduce", *words, "--runs", runs)
    assert result.status == 0, result.err
    row = result.out.splitlines()[-1]
    first, second = map(float, re.search(r"\| (0\.\d{4}) (0\.\d{4}) \|", row).groups())
    assert row.startswith("| mlp-adam | adam | test, epoch 10 | 0.9708 ") and first != second
    assert abs(float(row.split(" | ")[4]) - (first + second) / 2) < 1e-4
    assert (tmp_path / "results.md").read_text().startswith("# Results\n\n") and row in (
        tmp_path / "results.md"
    ).read_text()
    written = (runs / "mlp-adam-3" / "metrics.jsonl").stat().st_mtime_ns
    (runs / "mlp-adam-3-torch.jsonl").write_text('{"epoch": 10, "test_accuracy": 0.125}\n')
    with mock.patch("dpcnn.evidence.published.run", side_effect=AssertionError("no job for a complete run")):
        again = command("reproduce", *words, "--seeds", "3", "--runs", runs, "--torch", "mlp-adam")
    assert again.status == 0, again.err
    assert again.out.splitlines()[-1].endswith(f"| {first:.4f} | {first:.4f} | 0 s | 0.1250 | 0.1250 |")
    assert (runs / "mlp-adam-3" / "metrics.jsonl").stat().st_mtime_ns == written
    other = command("reproduce", *words, "--seeds", "3", "--runs", runs, "--max-steps", "31")  # a longer trial
    assert (
        other.status == 0
        and json.loads((runs / "mlp-adam-3" / "metrics.jsonl").read_text().splitlines()[-1])["steps"] == 31
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "no published figure for 'nosuch'; choose from simple-cnn-32, "),
        (["--ranks", "0"], "--ranks: must be at least 1, not 0"),
        (["--seeds", "a"], "--seeds: expected numbers such as 0,1,2, not a"),
        (["--launcher", "nosuchrun"], "no nosuchrun on the PATH"),
        (["mlp-adam", "--torch", "lenet5"], "--torch: lenet5 is not among the recipes to train; name it there too"),
        (["--out", "none/table.md"], "--out: no such folder: none; create it"),
        (
            ["--out", "own.md"],
            "--out: own.md: exists, and this command did not write it; give another name, or delete it",
        ),
    ],
)
def test_mistakes(words, message, tmp_path):
    (tmp_path / "own.md").write_text("mine\n")
    result = command("reproduce", *words, cwd=tmp_path)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
