"""The proof of the promise passes, and can fail."""

import json

import pytest
from commands import command
from conftest import run

from dpcnn.evidence.proof import first_difference


def arguments(quick, tmp_path, *flags: str):
    words = [word for word in quick if word not in ("--epochs", "2")]
    return [*words, "--receipt", tmp_path / "receipt.json", *flags]


def verify(quick, tmp_path, *flags: str):
    result = run(0, "-m", "dpcnn.verify", *arguments(quick, tmp_path, *flags), limit=120)
    return result, json.loads((tmp_path / "receipt.json").read_text())


def test_the_promise_is_kept(quick, tmp_path):
    result, receipt = verify(quick, tmp_path, "--ranks", "1,3,2", "--steps", "12")
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert [line.count("PASS") for line in lines[-5:]] == [1] * 5
    assert "2 ranks, killed at " in lines[-2] and lines[-1].startswith("PASS; receipt: ")
    assert receipt["verdict"] == "PASS" and len({run["weights_sha256"] for run in receipt["runs"]}) == 1
    assert [list(run["hashes"]) for run in receipt["runs"]] == [[str(step) for step in range(1, 13)]] * 4
    assert receipt["config"]["batch"] == 90 and len(receipt["data"]) == 64 and receipt["fingerprint"]["numpy"]


def test_a_rank_dependent_exchange_is_found_out(quick, tmp_path):
    result, receipt = verify(quick, tmp_path, "--ranks", "1,2", "--steps", "8", "--exchange", "allreduce")
    assert result.status == 1
    assert "FAIL" in result.out.splitlines()[-1]
    assert receipt["verdict"] == "FAIL"
    assert [run["first_difference"] is None for run in receipt["runs"]] == [True, False, False]
    assert receipt["runs"][1]["first_difference"].startswith(("step 1, conv2d", "step 1, linear"))


def test_the_first_difference_is_named():
    same = [
        {"event": "hash", "step": 3, "parameters": {"a": "0", "b": "1"}},
        {"event": "end", "steps": 3, "seconds": 1},
    ]
    later = [same[0], {"event": "end", "steps": 3, "seconds": 2}]
    other = [{"event": "hash", "step": 3, "parameters": {"a": "0", "b": "2"}}, same[1]]
    assert first_difference(same, later) is None
    assert first_difference(same, other) == "step 3, b"
    assert first_difference(same, same[:1]) == "1 lines of metrics instead of 2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "2"], "--ranks: expected at least two numbers"),
        (["--ranks", "1,x"], "--ranks: expected at least two numbers"),
        (["--steps", "1"], "--steps: must be at least 4, not 1"),
        (["--launcher", "nosuchrun"], "--launcher: no nosuchrun on the PATH"),
    ],
)
def test_mistakes(quick, tmp_path, flags, message):
    result = command("verify", *arguments(quick, tmp_path, *flags))
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
    assert not (tmp_path / "receipt.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--golden", "sgd", "--ranks", "1,2"], "--ranks: has no effect with --golden; leave it out"),
        (["--golden", "sgd", "--against", "x.json"], "--against: has no effect with --golden"),
        (["--golden", "sgd", "--recipe", "fast"], "--recipe: has no effect with --golden"),
        (["--golden", "sgd", "--lr", "0.1"], "--lr: has no effect with --golden, whose trainings have their own"),
        (["--against", "x.json", "--kill", "1"], "--kill: has no effect with --against"),
        (["--against", "x.json", "--steps", "9"], "--steps: has no effect with --against"),
        (
            ["--max-steps", "9"],
            "--max-steps: has no effect, because dpcnn verify sets it; give --steps, or leave it out",
        ),
        (["--receipt", "none/x.json"], "--receipt: no such folder: none; create it"),
        (
            ["--receipt", "own.txt"],
            "--receipt: own.txt: exists, and this command did not write it; give another name, or ",
        ),
    ],
)
def test_options_without_an_effect_and_files_in_the_way_are_refused(tmp_path, flags, message):
    (tmp_path / "own.txt").write_text("mine\n")
    result = command("verify", *flags, cwd=tmp_path)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
    assert (tmp_path / "own.txt").read_text() == "mine\n"


def test_a_mistake_that_a_run_finds(quick, tmp_path):
    flags = ["--ranks", "1,2", "--batch", "0"]
    result = run(0, "-m", "dpcnn.verify", *arguments(quick, tmp_path, *flags))
    message = "the run on 1 rank ended with status 2: dpcnn: error: --batch: must be"
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
    assert not (tmp_path / "receipt.json").exists()
