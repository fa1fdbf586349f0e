"""The golden hashes: they hold, and a change of bits is found; receipts of other machines."""

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from commands import ROOT, command
from conftest import many, run

from dpcnn.base.numerics import PORTABLE
from dpcnn.evidence.golden import RUNS, first_difference, read_table
from dpcnn.evidence.receipts import read_receipt
from dpcnn.nn.models import KINDS, MODELS


@cache
def deviations() -> str:
    """Why this machine has not the bits of the table; empty: it has."""
    code = "import dpcnn; from dpcnn.base.numerics import deviations; print(deviations())"
    return run(0, "-c", code, env={"DPCNN_NUMERICS": "portable"}).out.strip()


@pytest.fixture
def pinned():
    if deviations():
        pytest.skip(f"not the numerics of the table: {deviations()}")


def test_the_bits_are_those_of_the_table(pinned):
    """If you have changed bits on purpose, make the table again: see CONTRIBUTING.md."""
    result = run(0, "-m", "dpcnn.verify", "--golden")
    assert result.status == 0, result.out
    assert result.out.splitlines()[-1] == "PASS" and result.out.count("PASS") == len(RUNS) + 1


def test_the_table_has_every_training_and_every_layer_is_trained():
    table = read_table()
    assert {key: sorted(entry["runs"]) for key, entry in table.items()} == dict.fromkeys(table, sorted(RUNS))
    assert table["portable"]["fingerprint"] == PORTABLE and "native" in table
    layers = [layer for options in [*RUNS.values(), *({"layers": spec} for spec in MODELS.values())]
              for layer in options.get("layers", [])]  # fmt: skip
    named = json.dumps(layers) + "".join(path.read_text() for path in (ROOT / "dpcnn" / "recipes").glob("*.toml"))
    assert [kind for kind in KINDS if f'"{kind}"' not in named] == []


def test_other_numerics_than_the_table_s_are_named(pinned):
    kernels = {"OPENBLAS_CORETYPE": "Sandybridge"}
    result = run(0, "-m", "dpcnn.verify", "--golden", "mlp", "--numerics", "native", env=kernels)
    assert result.status == 1 and "the numerics differ from those of the table: blas openblas" in result.out
    assert "step 1, linear1." in result.out and result.out.splitlines()[-1] == "FAIL"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--golden", "lenet"], "--golden: no training 'lenet'; did you mean 'lenet5'?"),
        (["--write-golden"], "--write-golden: give it with --golden"),
        (["--golden", "mlp", "--write-golden"], "--write-golden: the table needs all trainings"),
    ],
)
def test_mistakes(words, message):
    result = run(0, "-m", "dpcnn.verify", *words)
    assert result.status == 2 and message in result.errors[0]


def test_the_first_difference_is_named():
    known = {"1": {"a": "0", "b": "1"}, "2": {"a": "2", "b": "3"}}
    assert first_difference(known, known) == ""
    assert first_difference(known, {**known, "2": {"a": "2", "b": "4"}}) == "step 2, b"
    assert first_difference(known, {**known, "2": {"a": "2"}}) == "step 2, b"
    assert first_difference(known, {"1": known["1"]}) == "1 steps instead of 2"
    assert first_difference({}, known) == "not in the table"


MUTANTS = {
    "a constant of Adam": ("adam", "optim/optimizers.py", "option(0.999,", "option(0.9991,"),
    "the epsilon of Adam": ("adam", "optim/optimizers.py", "b += self.epsilon * correction", "b += self.epsilon"),
    "a rounding of the softmax": ("mlp", "nn/losses.py", "gradient /= totals", "gradient *= 1 / totals"),
    "a rounding of the pixels": (
        "simple-cnn",
        "nn/layers.py",
        "np.multiply(x, self.dtype.type(self.span / 255)",
        "np.divide(x, self.dtype.type(255 / self.span)",
    ),
    "a point of Winograd's kernel": ("simple-cnn", "nn/winograd.py", "0.625, -0.625, 1, -1", "0.75, -0.75, 1, -1"),
    "the tiles in a product": ("simple-cnn", "nn/tuning.py", "winograd_tiles=4", "winograd_tiles=1"),
    "the draws of augmentation": ("all-options", "base/rng.py", "IMAGE = 2**32", "IMAGE = 2**33"),
    "the draws of dropout": ("all-options", "nn/layers.py", ">= self.threshold", "> self.threshold"),
    "a digit of the first weights": ("mlp", "base/elementary.py", "3.3871327179", "3.3871337179"),
    "the order of samples": ("mlp", "base/rng.py", "ORDER = 2", "ORDER = 6"),
    "the order of addition": ("mlp", "parallel/tree.py", "lo + (1 << ((hi - lo - 1).bit_length() - 1))", "lo + 1"),
    "the clipped norm": ("all-options", "optim/clipping.py", "max_norm / norm if", "max_norm / (norm + 1e-6) if"),
    "the average of the weights": ("all-options", "optim/averaging.py", "/ (4 + step))", "/ (5 + step))"),
    "the shares of overlapping windows": (
        "other-layers",
        "nn/pooling.py",
        "larger_h[windows], dh, fresh=s)",
        "larger_h[windows], dh, fresh=k)",
    ),
    "the momentum of running means": ("accurate", "nn/normalisation.py", "max(1, count - 1)", "count"),
    "the smoothing of elastic fields": ("all-options", "data/warp.py", "SMOOTHNESS = 7", "SMOOTHNESS = 7.001"),
    "the schedule": ("lenet5", "training/plan.py", "(step + 1) / (config.warmup + 1)", "(step + 1) / config.warmup"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MUTANTS)[: many(len(MUTANTS))])
def test_a_mutant_is_found(pinned, tmp_path, name):
    training, file, before, after = MUTANTS[name]
    shutil.copytree(ROOT / "dpcnn", tmp_path / "dpcnn", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "dpcnn" / file
    source = path.read_text()
    assert source.count(before) == 1
    path.write_text(source.replace(before, after))
    result = run(0, "-m", "dpcnn.verify", "--golden", training, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert result.status == 1, result.out
    assert re.search(rf"{training} +FAIL +step \d, ", result.out) and result.out.splitlines()[-1] == "FAIL"


@pytest.fixture(scope="module")
def receipt(quick, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("receipt") / "receipt.json"
    words = ["--ranks", "1,2", "--steps", "5", "--model", "mlp", "--receipt", path]
    flags = [word for word in quick if word not in ("--epochs", "2")]
    assert run(0, "-m", "dpcnn.verify", *flags, *words).status == 0
    return path


def test_the_run_of_another_machine_s_receipt_is_repeated(receipt, tmp_path):
    result = run(0, "-m", "dpcnn.verify", "--against", receipt, "--ranks", "3")
    assert result.status == 0 and result.out.splitlines()[-1] == "PASS", result.out
    known = read_receipt(receipt)
    assert [event["step"] for event in known.hashes] == [1, 2, 3, 4, 5] and known.config.model == "mlp"


def test_a_receipt_with_other_bits_fails(receipt, tmp_path):
    told = json.loads(receipt.read_text())
    told["runs"][0]["hashes"]["3"]["linear1.b"] = "0" * 16
    told["fingerprint"]["numpy"] = "1.0.0"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told))
    result = run(0, "-m", "dpcnn.verify", "--against", other, "--ranks", "1")
    assert result.status == 1 and "step 3, linear1.b" in result.out
    assert f"the numerics differ from those on {told['host']}: numpy 2" in result.out


def test_what_is_no_receipt_or_of_other_data(receipt, tmp_path):
    broken, other = tmp_path / "broken.json", tmp_path / "other.json"
    broken.write_text("{}")
    told = json.loads(receipt.read_text())
    other.write_text(json.dumps(told | {"data": "0" * 64}))
    for words, message in (
        ([broken], f"{broken}: not a receipt of dpcnn verify: runs is missing"),
        ([tmp_path / "none.json"], "No such file or directory; give a receipt"),
        ([other], "not the data of the receipt; give --data"),
        ([receipt, "--seed", "1"], "--against: the receipt has the options of its training"),
    ):
        result = command("verify", "--against", *words)
        assert result.status == 2 and message in result.errors[0]
