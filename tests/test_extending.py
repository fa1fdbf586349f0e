"""The module of docs/extending.md, used as that page says."""

import json
import re
import sys

import numpy as np
import pytest
from commands import command, training
from conftest import ROOT, run
from metrics import events

from dpcnn.__main__ import commands

PAGE = (ROOT / "docs" / "extending.md").read_text()
MODULE, WEIGHTS, ONNX = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(RECIPE,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the module and the recipe of the page; the module is forgotten at the end."""
    from dpcnn.interop.onnx import OPERATORS
    from dpcnn.nn.losses import LOSSES
    from dpcnn.nn.models import KINDS
    from dpcnn.optim.optimizers import OPTIMIZERS

    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(RECIPE)
    tables = KINDS, OPTIMIZERS, LOSSES, OPERATORS
    before = [dict(table) for table in tables]
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget()
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def forget() -> None:
    sys.modules.pop("mine", None)


@pytest.fixture
def flags(small):
    return ["--recipe", "mine.toml", "--data", small, "--max-steps", "12", "--batch", "60", "--no-curves"]


NEEDED = "imports: this needs your module mine, which runs only if you say so: add --import mine to the command"


def test_a_run_with_a_module_of_the_user_s(folder, flags, capsys):
    hashes = set()
    for ranks in (1, 2):
        out = folder / f"run{ranks}"
        result = training(*flags, "--import", "mine", "--focus", "1.5", "--out", out, ranks=ranks, cwd=folder)
        assert result.status == 0, result.err
        hashes.add(events(out)[-1]["weights_sha256"])
    assert len(hashes) == 1
    config = (folder / "run1" / "config.toml").read_text()
    for line in (
        'imports = [\n    "mine",\n]',
        "lion_beta1 = 0.95",
        "lion_beta2 = 0.99",
        "focus = 1.5",
        'loss = "focal"',
    ):
        assert line in config
    result = command("evaluate", "--import", "mine", folder / "run1", cwd=folder)
    assert result.status == 0, result.err
    resumed = [*flags[2:], "--max-steps", "15", "--resume", "--out", folder / "run1"]
    assert training("--import", "mine", *resumed, cwd=folder).status == 0
    assert events(folder / "run1")[-1]["steps"] == 15


def test_nothing_is_imported_because_a_file_says_so(folder, flags):
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n{MODULE}")
    assert training(*flags, "--import=mine", "--out", folder / "run", cwd=folder).status == 0
    (folder / "ran").unlink()
    for words in (
        ["evaluate", "run"],
        ["report", "run"],
        ["export", "run"],
        ["summary", "mine.toml"],
        ["plot", "run", "--filters"],
    ):
        forget()
        result = command(*words, cwd=folder)
        assert result.status == 2 and NEEDED in result.errors[0], words
        assert "not a checkpoint" not in result.errors[0], words
    for words in (flags, ["--resume", "--out", folder / "run"]):
        forget()
        result = training(*words, cwd=folder)
        assert result.status == 2 and NEEDED in result.errors[0], words
    assert not (folder / "ran").exists()


def test_verify_resumes_a_run_with_a_module_and_repeats_its_receipt(folder, flags):
    """The resumed run got no --import, and was refused; so was the run that repeats a receipt."""
    words = [*flags[:4], "--batch", "60", "--steps", "4", "--ranks", "1,2"]
    result = command("verify", "--import", "mine", *words, "--receipt", folder / "r.json", cwd=folder)
    assert result.status == 0, result.err
    repeated = ["verify", "--against", folder / "r.json", "--ranks", "1"]
    result = command(*repeated, "--import", "mine", cwd=folder)
    assert result.status == 0, result.err
    forget()
    result = command(*repeated, cwd=folder)
    assert result.status == 2 and f"r.json: config: {NEEDED}" in result.errors[0]


def test_an_option_of_a_layer_needs_a_type(folder, flags):
    """A recipe with this option ended in a KeyError."""
    untyped = MODULE.replace("sharpness: float = 1.0", "sharpness=1.0")
    (folder / "mine.py").write_text(untyped)
    result = training(*flags, "--import", "mine", "--out", folder / "run", cwd=folder)
    assert result.status == 2 and "sharpness: Softsign.__init__ gives it no type; write sharpness: " in result.errors[0]


def test_a_missing_entry_is_named_and_one_makes_the_export_work(folder, flags):
    pytest.importorskip("onnx", reason="extras not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="extras not installed")
    assert training(*flags, "--import", "mine", "--out", folder / "run", cwd=folder).status == 0
    result = command("export", "--import", "mine", "run", cwd=folder)
    assert result.status == 2 and result.errors[0].endswith(
        "no ONNX export for softsign1: use --format npz, or add the entry dpcnn.interop.onnx.OPERATORS[Softsign]"
    )
    (folder / "mine.py").write_text(f"{MODULE}\n{ONNX}")
    forget()
    result = command("export", "--import", "mine", "run", "--out", folder / "net.onnx", cwd=folder)
    assert result.status == 0, result.err
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 256, (7, *session.get_inputs()[0].shape[1:]))
    (logits,) = session.run(["logits"], {"images": x.astype(np.float32)})
    from dpcnn.runs.checkpoint import read

    checkpoint = read(folder / "run" / "checkpoints" / "last.h5")
    network = checkpoint.network()
    expected = network.logits(network.flat(checkpoint.parameters), x.astype(np.uint8))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_gradients_of_the_page_are_right(folder):
    names = {}
    exec(MODULE, names)
    rng = np.random.default_rng(3)
    loss, outputs, labels = names["Focal"](1.5), rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    direction = rng.standard_normal(outputs.shape)
    numeric = sum(s * loss.loss(outputs + s * 1e-6 * direction, labels).sum() for s in (1, -1)) / 2e-6
    assert (loss.gradient(outputs, labels) * direction).sum() == pytest.approx(numeric, rel=1e-6)
    layer, x = names["Softsign"](2.0), rng.standard_normal((6, 4))
    _, backward = layer.forward(x, {})
    numeric = sum(s * layer.forward(x + s * 1e-6 * direction, {})[0].copy() for s in (1, -1)) / 2e-6
    _, backward = layer.forward(x, {})
    np.testing.assert_allclose(backward(direction.copy(), {}), numeric, rtol=1e-5, atol=1e-7)


SCALED = """
model = "mine"
layers = [
    { kind = "scale" },
    { kind = "channelscale", start = 1.0 },
    { kind = "flatten" },
    { kind = "linear", bias = true },
]
"""


def test_the_layer_with_weights_of_the_page_is_right_and_trains(folder, flags):
    names = {}
    (folder / "mine.py").write_text(MODULE + WEIGHTS)
    exec(WEIGHTS, names)
    forget()
    rng = np.random.default_rng(4)
    layer, x, c = names["ChannelScale"](0.5), rng.standard_normal((3, 4, 5, 6)), rng.standard_normal((3, 4, 5, 6))
    assert layer.build((3, 4, 6)) == (3, 4, 6)
    w, grads = rng.standard_normal(6), {"w": np.empty(6)}
    _, backward = layer.forward(x, {"w": w})
    dx = backward(c.copy(), grads)
    np.testing.assert_allclose(dx, c * w)
    np.testing.assert_allclose(grads["w"], (c * x).sum(axis=(0, 1, 2)))

    from dpcnn.nn.models import KINDS

    KINDS.pop("channelscale", None)
    (folder / "mine.toml").write_text(SCALED)
    hashes = set()
    for ranks in (1, 2):
        out = folder / f"scaled{ranks}"
        result = training(*flags, "--import", "mine", "--out", out, ranks=ranks, cwd=folder)
        assert result.status == 0, result.err
        hashes.add(events(out)[-1]["weights_sha256"])
    assert len(hashes) == 1


def test_parameters_of_another_type_are_refused_in_one_line(folder, flags):
    declared = 'self.parameters = (Parameter("w", shape[-1:], initial_value=self.start),)'
    assert declared in WEIGHTS
    (folder / "mine.py").write_text(MODULE + WEIGHTS.replace(declared, 'self.parameters = {"w": shape[-1:]}'))
    (folder / "mine.toml").write_text(SCALED)
    result = training(*flags, "--import", "mine", "--out", folder / "run", cwd=folder)
    assert result.status == 2 and len(result.errors) == 1
    assert "channelscale1: parameters: expected a tuple of dpcnn.nn.layer.Parameter, not {'w': " in result.errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--import", "nowhere"], "--import nowhere: no module 'nowhere' here or installed"),
        (["--import", "../mine"], "--import: expected the name of a module, as in an import statement, not '../mine'"),
        (["--import", "broken"], "--import broken: ZeroDivisionError: division by zero ("),
        (["--import", "wrong"], "--import wrong: SyntaxError: invalid syntax (wrong.py, line 1)"),
        (["--import"], "--import: expected one argument"),
        (
            ["--beta1", "0.5", "--optimizer", "sgd"],
            "--beta1: an option of adam, adamw, lamb, not of this run: the optimizer sgd has weight_decay; the loss",
        ),
        (["--beta1", "1.5"], "--beta1: must be below 1, not 1.5"),
        (["--loss", "mse"], "--loss: no 'mse'; choose from cross-entropy"),
        (["--momentun", "0.5"], "unrecognized arguments: --momentun 0.5; did you mean '--momentum'?"),
    ],
)
def test_mistakes(folder, words, message):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "wrong.py").write_text("x = = 1\n")
    result = training(*words, "--out", folder / "run", cwd=folder)
    assert result.status == 2 and len(result.errors) == 1 and message in result.errors[0]
    assert "frozen" not in result.errors[0] and not (folder / "run").exists()


def test_another_optimizer_has_its_own_options(small, tmp_path):
    """A recipe's momentum is no option of Adam, and is dropped with its optimizer."""
    (tmp_path / "r.toml").write_text('model = "mlp"\noptimizer = "nesterov"\nmomentum = 0.5\n')
    flags = ["--data", small, "--max-steps", "1", "--batch", "60", "--no-curves", "--recipe", tmp_path / "r.toml"]
    assert training(*flags, "--out", tmp_path / "a", "--optimizer", "adam", "--beta1", "0.8").status == 0
    assert training(*flags, "--out", tmp_path / "b", "--optimizer", "momentum").status == 0
    adam, momentum = ((tmp_path / name / "config.toml").read_text() for name in "ab")
    assert "beta1 = 0.8" in adam and "momentum = " not in adam.replace('optimizer = "momentum"', "")
    assert "momentum = 0.5" in momentum
    resumed = training("--resume", "--out", tmp_path / "a", "--beta1", "0.9")
    assert resumed.status == 2 and "--beta1: " in resumed.errors[0] and "was started with 0.8" in resumed.errors[0]


@pytest.mark.slow
def test_the_commands_of_the_page_under_mpirun(folder, small):
    result = run(
        2, "-m", "dpcnn.train", "--import", "mine", "--recipe", "mine.toml", "--data", small, "--max-steps", "3",
        "--batch", "60", "--out", "run", cwd=folder,
    )  # fmt: skip
    assert result.status == 0, result.err


def test_every_command_is_found_and_says_what_it_does():
    folder = ROOT / "dpcnn"
    files = {path.stem for path in folder.glob("*.py")} | {"data"}
    assert set(commands()) == files - {"__init__", "__main__", "cli", "config", "errors", "flags", "recipe"}
    assert all(text and json.dumps(text) for text in commands().values())
