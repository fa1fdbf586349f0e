"""Recipes of published networks: the table says what the runs said."""

import re

import pytest
from conftest import run

from dpcnn.config import read_recipe
from dpcnn.reproduce import PUBLISHED, Published, compare


def test_a_row_of_the_table():
    runs = [
        [{"epoch": e, "test_accuracy": accuracy + e / 100, "seconds": 2.0} for e in (1, 2, 3)]
        for accuracy in (0.5, 0.7, 0.6)
    ]
    row = compare("mlp-adam", Published("test", 2, 0.9, "a book"), runs)
    assert row == (
        "mlp-adam", "adam", "test, epoch 2", "0.9000 (a book)", "0.6200", "0.5200 0.7200 0.6200", "4 s"
    )  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_lasts_as_long_as_its_published_figure(name):
    config = read_recipe(name)
    assert config.network((28, 28, 1), 10).size > 0
    assert max(published.epoch for published in PUBLISHED[name]) == config.epochs
    assert (config.validation > 0) or {published.kind for published in PUBLISHED[name]} == {"test"}


def test_it_runs_what_it_is_asked_for(tmp_path):
    words = ["mlp-adam", "--seeds", "3,4", "--ranks", "1", "--max-steps", "30", "--out", tmp_path / "results.md"]
    result = run(0, "-m", "dpcnn.reproduce", *words)
    assert result.status == 0, result.err
    row = result.out.splitlines()[-1]
    first, second = map(float, re.search(r"\| (0\.\d{4}) (0\.\d{4}) \|", row).groups())
    assert row.startswith("| mlp-adam | adam | test, epoch 10 | 0.9708 ") and first != second
    assert abs(float(row.split(" | ")[4]) - (first + second) / 2) < 1e-4
    assert (tmp_path / "results.md").read_text().startswith("# Results\n\n") and row in (
        tmp_path / "results.md"
    ).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "no published figure for 'nosuch'; choose from simple-cnn-32, "),
        (["--seeds", "a"], "--seeds: expected numbers such as 0,1,2, not a"),
        (["--launcher", "nosuchrun"], "no nosuchrun on the PATH"),
    ],
)
def test_mistakes(words, message):
    result = run(0, "-m", "dpcnn.reproduce", *words)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
