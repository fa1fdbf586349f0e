"""Warm starts: a new run takes over the parameters of a checkpoint wherever the name and the shape agree."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import command, training

from dpcnn import Classifier
from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.recipe import read_recipe
from dpcnn.runs.checkpoint import read
from dpcnn.runs.folder import RunFolder

RNG = np.random.default_rng(11)
SHORT = ["--validation", "10", "--batch", "20", "--microbatch", "4", "--epochs", "2", "--warmup", "0", "--lr", "0.01"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("digits"), 4)


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("letters"), 3)


def prepared(folder: Path, classes: int) -> Path:
    """70 training images of 9 x 9 in ``classes`` classes."""
    arrays = {f"x_{split}": RNG.integers(0, 256, (n, 9, 9), np.uint8) for split, n in (("train", 70), ("test", 6))}
    arrays |= {f"y_{split}": np.arange(n) % classes for split, n in (("train", 70), ("test", 6))}
    np.savez(folder / "source.npz", **arrays)
    assert command("data", "prepare", folder / "source.npz", "--out", folder / "set", "--shards", "2").status == 0
    return folder / "set"


def write_recipe(path: Path, *, frozen: tuple[str, ...] = (), kernel_size: int = 3) -> Path:
    tables = [
        {"kind": "scale", "name": "pixels"},
        {"kind": "conv2d", "name": "stem", "filters": 5, "kernel_size": kernel_size, "bias": True},
        {"kind": "batchnorm", "name": "norm"},
        {"kind": "relu", "name": "act"},
        {"kind": "flatten", "name": "flat"},
        {"kind": "linear", "name": "head", "bias": True},
    ]
    lines = []
    for table in tables:
        table |= {"freeze": True} if table["name"] in frozen else {}
        lines += ["[[layers]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path.write_text("\n".join(['model = "tuned"', *lines]))
    return path


@pytest.fixture(scope="module")
def source(digits, tmp_path_factory) -> Path:
    """A run on four classes."""
    folder = tmp_path_factory.mktemp("source")
    recipe = write_recipe(folder / "recipe.toml")
    result = training("--recipe", recipe, "--data", digits, *SHORT, "--out", folder / "run")
    assert result.status == 0, result.err
    return folder / "run"


def flags(folder: Path, letters: Path, source: Path, frozen: tuple[str, ...] = ("stem", "norm")) -> list[str | Path]:
    """A training on three classes from a run on four."""
    recipe = write_recipe(folder / "tuned.toml", frozen=frozen)
    return ["--recipe", recipe, "--data", letters, *SHORT, "--init-from", source]


def last(run: Path):
    return read(run / "checkpoints" / "last.h5")


def first(run: Path):
    return read(run / "checkpoints" / "step-00000000.h5")


def source_of(run: Path):
    """The checkpoint that stands for a run's folder."""
    return read(run / "checkpoints" / "best.h5")


@pytest.fixture(scope="module")
def undisturbed(letters, source, tmp_path_factory) -> str:
    """The weights of the tuned run on one rank."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = training(*flags(folder, letters, source), "--out", folder / "run")
    assert result.status == 0, result.err
    return last(folder / "run").weights_sha256


def test_frozen_layers_keep_the_bits_of_the_source_and_a_new_head_learns(letters, source, tmp_path):
    more = ["--ema-decay", "0.9", "--keep", "9"]
    result = training(*flags(tmp_path, letters, source), *more, "--out", tmp_path / "run", ranks=2)
    assert result.status == 0, result.err
    assert f"6 of 8 parameters taken over from {source}; initialised anew: head\n" in result.out
    given, begun, ended = source_of(source), first(tmp_path / "run"), last(tmp_path / "run")
    network = begun.network()
    drawn = network.views(network.initialise(0))
    for name in drawn:
        expected = drawn[name] if name.startswith("head") else given.parameters[name]
        assert begun.parameters[name].tobytes() == expected.tobytes(), name
        same = ended.parameters[name].tobytes() == expected.tobytes()
        assert same == (not name.startswith("head")), name
    average = network.flat(begun.parameters)
    assert begun.optimizer["ema"].tobytes() == average.tobytes()
    assert not any(vector.any() for name, vector in begun.optimizer.items() if name != "ema")


@pytest.mark.parametrize("ranks", [2, [2, 1]])
def test_any_number_of_ranks_ends_with_the_same_bits(letters, source, undisturbed, tmp_path, ranks):
    result = training(*flags(tmp_path, letters, source), "--out", tmp_path / "run", ranks=ranks)
    assert result.status == 0, result.err
    assert last(tmp_path / "run").weights_sha256 == undisturbed


def test_another_source_gives_other_bits(letters, source, undisturbed, tmp_path):
    without = flags(tmp_path, letters, source, frozen=())[:-2]
    assert training(*without, "--out", tmp_path / "cold").status == 0
    assert training(*flags(tmp_path, letters, tmp_path / "cold"), "--out", tmp_path / "run").status == 0
    assert len({last(tmp_path / run).weights_sha256 for run in ("cold", "run")} | {undisturbed}) == 3


@pytest.mark.parametrize("operation", range(20, 200, 20))
def test_deaths_around_the_first_checkpoint_do_not_change_the_bits(letters, source, undisturbed, tmp_path, operation):
    words = [*flags(tmp_path, letters, source), "--no-curves", "--stall-timeout", "0", "--out", tmp_path / "run"]
    result = command("train", *words, ranks=[1, 1], dying={0: operation})
    assert result.status == 0, result.err
    assert last(tmp_path / "run").weights_sha256 == undisturbed
    assert result.out.count("taken over") <= 2  # a rank 0 that has died may have printed it


def test_a_state_that_is_lost_before_the_first_checkpoint_begins_again(
    letters, source, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(RunFolder, "save", lambda folder, checkpoint: None)
    words = [*flags(tmp_path, letters, source), "--no-curves", "--stall-timeout", "0", "--out", tmp_path / "run"]
    result = command("train", *words, ranks=[1, 1, 1], dying={1: 220, 2: 220})
    assert result.status == 0, result.err
    assert "died after step" in result.out
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["weights_sha256"] == undisturbed


@pytest.fixture(scope="module")
def warm(letters, source, tmp_path_factory) -> str:
    """The weights of the tuned run that freezes nothing."""
    folder = tmp_path_factory.mktemp("warm")
    result = training(*flags(folder, letters, source, frozen=()), "--out", folder / "run")
    assert result.status == 0, result.err
    return last(folder / "run").weights_sha256


@pytest.mark.parametrize("checkpoint", ["", "checkpoints/best.h5"])
def test_without_a_recipe_network_and_options_are_those_of_the_source(letters, source, warm, tmp_path, checkpoint):
    words = ["--init-from", source / checkpoint, "--data", letters]
    result = training(*words, ranks=2, cwd=tmp_path)
    assert result.status == 0, result.err
    assert ": tuned, " in result.out
    told = f"no --recipe: the network and all options that are not given are those of {source / checkpoint}"
    assert told in result.out and f"6 of 8 parameters taken over from {source / checkpoint}; init" in result.out
    (run,) = (tmp_path / "runs").glob("tuned-*")
    assert last(run).weights_sha256 == warm
    given, options = last(run).config.as_dict(), source_of(source).config.as_dict()
    own = {"data", "init_from", "init_from_sha256"}
    assert {name for name in given if given[name] != options[name]} == own
    other = training(*words, "--lr", "0.1", "--seed", "3", "--out", tmp_path / "other")
    assert other.status == 0 and last(tmp_path / "other").config.as_dict() == {**given, "lr": 0.1, "seed": 3}


def test_the_step_limit_of_a_source_is_its_own_and_that_of_a_recipe_is_told(letters, digits, source, warm, tmp_path):
    begun = training("--init-from", source, "--max-steps", "1", "--out", tmp_path / "begun")
    assert begun.status == 0 and "2 epochs of 3 steps, but 1 in all (--max-steps); " in begun.out, begun.err
    result = training("--recipe", tmp_path / "begun" / "config.toml", "--out", tmp_path / "again")
    assert "but 1 in all" in result.out and last(tmp_path / "again").progress.step == 1
    tuned = training("--init-from", tmp_path / "begun", "--out", tmp_path / "tuned")
    assert tuned.status == 0 and "2 epochs of 3 steps; " in tuned.out, tuned.err
    assert last(tmp_path / "tuned").progress.step == 6
    assert last(tmp_path / "tuned").config.init_from == str(tmp_path / "begun")


def test_a_source_without_a_recipe_can_be_wrong(letters, source, tmp_path):
    for words, message in (
        (["--init-from", "no-such.h5"], "--init-from no-such.h5: No such file or directory; give a checkpoint's path"),
        (["--init-from", tmp_path], f"--init-from {tmp_path}: a folder without checkpoints/last.h5"),
        (["--init-from", source, "--data", "none"], "no data set 'none'"),
    ):
        result = training(*words, "--out", tmp_path / "run", ranks=2)
        assert result.status == 2 and message in only_error(result)
    assert not (tmp_path / "run").exists()


def test_a_model_from_python_has_the_network_of_its_source(letters, source, warm):
    model = Classifier(init_from=str(source), verbose=False)
    assert model.fit(letters).weights_sha256 == warm and model.checkpoint_.config.model == "tuned"
    assert repr(model) == f"Classifier(verbose=False, init_from={str(source)!r})"
    assert Classifier().base() == read_recipe("simple-cnn")


def test_a_resume_needs_no_source(letters, source, undisturbed, tmp_path):
    shutil.copytree(source, tmp_path / "source", symlinks=True)
    words = [*flags(tmp_path, letters, tmp_path / "source"), "--keep", "9"]
    assert training(*words, "--max-steps", "4", "--out", tmp_path / "run").status == 0
    shutil.rmtree(tmp_path / "source")
    steps = ["--max-steps", "0"]
    begun = tmp_path / "run" / "checkpoints" / "step-00000000.h5"
    for out, resumed in {
        "again": ["--resume", begun],
        "run": ["--resume"],
        "run, by the same command": [*words, "--resume", "auto"],
    }.items():
        folder = tmp_path / out.partition(",")[0]
        result = training(*resumed, *steps, "--out", folder)
        assert result.status == 0, result.err
        assert last(folder).weights_sha256 == undisturbed


def test_a_run_records_its_source_and_its_config_is_a_recipe(letters, source, undisturbed, tmp_path):
    assert training(*flags(tmp_path, letters, source), "--out", tmp_path / "run").status == 0
    config, sha256 = read_recipe(str(tmp_path / "run" / "config.toml")), source_of(source).weights_sha256
    assert config == last(tmp_path / "run").config
    assert (config.init_from, config.init_from_sha256) == (str(source), sha256)
    assert training("--recipe", tmp_path / "run" / "config.toml", "--out", tmp_path / "again").status == 0
    assert last(tmp_path / "again").weights_sha256 == undisturbed
    other = source / "checkpoints" / "last.h5"
    result = training("--recipe", tmp_path / "run" / "config.toml", "--init-from", other, "--out", tmp_path / "other")
    assert result.status == 0, result.err
    assert last(tmp_path / "other").config.init_from_sha256 == read(other).weights_sha256


def test_a_resume_with_another_source_is_an_error(letters, source, tmp_path):
    assert training(*flags(tmp_path, letters, source), "--max-steps", "1", "--out", tmp_path / "run").status == 0
    result = training("--resume", "--out", tmp_path / "run", "--init-from", tmp_path / "other")
    assert result.status == 2
    assert re.search("error: --init-from: .* was started with .*, and can't be resumed with", only_error(result))


def only_error(result) -> str:
    (error,) = result.errors
    assert "Traceback" not in result.err
    return error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--init-from", "no-such.h5"], "--init-from no-such.h5: No such file or directory; give a checkpoint's path"),
        (["--init-from-sha256", "0" * 64], "expected " + "0" * 64 + " (init_from_sha256)"),
        (["--init-from-sha256", "x"], "--init-from-sha256: expected 64 hexadecimal digits, not 'x'"),
        (["--init-from", "", "--init-from-sha256", "0" * 64], "--init-from-sha256: needs --init-from"),
    ],
)
def test_a_source_that_is_not_there_or_has_other_weights_is_an_error(letters, source, tmp_path, more, message):
    result = training(*flags(tmp_path, letters, source), *more, "--out", tmp_path / "run", ranks=2)
    assert result.status == 2 and message in only_error(result)
    assert not (tmp_path / "run").exists()


def test_a_frozen_layer_that_the_source_lacks_is_an_error(letters, source, tmp_path):
    recipe = write_recipe(tmp_path / "wide.toml", frozen=("stem",), kernel_size=1)
    result = training("--recipe", recipe, "--data", letters, *SHORT, "--init-from", source, "--out", tmp_path / "run")
    assert result.status == 2
    assert f"stem: freeze: --init-from {source} has no stem.w of the shape (1, 1, 1, 5)" in only_error(result)


def test_a_source_without_a_common_parameter_is_an_error(letters, source, tmp_path):
    words = ["--model", "mlp", "--data", letters, *SHORT, "--init-from", source, "--out", tmp_path / "run"]
    result = training(*words)
    assert result.status == 2 and "no parameter has the name and the shape" in only_error(result)


def test_a_network_of_the_same_shapes_takes_all_over(digits, source, tmp_path):
    recipe = write_recipe(tmp_path / "same.toml")
    words = ["--recipe", recipe, "--data", digits, *SHORT, "--init-from", source, "--keep", "9", "--max-steps", "1"]
    result = training(*words, "--out", tmp_path / "run")
    assert "8 of 8 parameters taken over" in result.out and "; none initialised anew" in result.out
    assert first(tmp_path / "run").weights_sha256 == source_of(source).weights_sha256


def test_a_config_without_a_source_has_no_checksum():
    with pytest.raises(ConfigError, match="needs --init-from"):
        Config(init_from_sha256="0" * 64)


def test_a_model_from_python_starts_warm_and_goes_on_in_its_folder(letters, source, undisturbed, tmp_path):
    recipe, *_ = flags(tmp_path, letters, source)[1:]
    options = {"validation": 10, "batch": 20, "microbatch": 4, "epochs": 2, "warmup": 0, "lr": 0.01}
    model = Classifier(str(recipe), verbose=False, init_from=str(source), data=str(letters), **options)
    for steps in (4, 0):
        model.set_params(max_steps=steps).fit(str(letters), out=tmp_path / "run")
    assert last(tmp_path / "run").weights_sha256 == undisturbed
