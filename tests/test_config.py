"""Options: their bounds, recipes, and what is said of a mistake."""

import os
from argparse import Namespace
from dataclasses import replace

import pytest

from dpcnn.config import Config, from_dict
from dpcnn.errors import ConfigError
from dpcnn.flags import override
from dpcnn.recipe import read_recipe

MISTAKES = [
    ({"patience": 2, "validation": 0}, "--patience: needs --validation samples"),
    ({"batch": 0}, "--batch: must be at least 1, not 0"),
    ({"seed": -1}, "--seed: must be at least 0, not -1"),
    ({"lr": 0.0}, "--lr: must be a number above 0, not 0.0"),
    ({"lr": float("nan")}, "--lr: must be a number above 0, not nan"),
    ({"lr": float("inf")}, "--lr: must be a number, not inf"),
    ({"shift": float("inf")}, "--shift: must be a number, not inf"),
    ({"ema_decay": 1.0}, "--ema-decay: must be below 1, not 1.0"),
    ({"max_grad_norm": -1.0}, "--max-grad-norm: must be at least 0, not -1.0"),
    ({"label_smoothing": 1.0}, "--label-smoothing: must be below 1, not 1.0"),
    ({"model": "resnet"}, "--model: no 'resnet'; choose from simple-cnn, small-cnn, mlp, or write [[layers]]"),
    ({"optimizer": "lion"}, "--optimizer: no 'lion'; choose from adagrad, adam, adamw, "),
    ({"epochs": 2.5}, "--epochs: expected int, not 2.5"),
    ({"epochs": True}, "--epochs: expected int, not True"),
    ({"data": 3}, "--data: expected str, not 3"),
    ({"test": 1}, "--test: expected bool, not 1"),
    ({"validation": 10.5}, "--validation: expected a whole number, or a fraction below 1, not 10.5"),
    ({"model": "a\nb"}, "--model: "),
    ({"data": "\x1b[2J"}, "--data: expected a name of printable characters"),
    ({"epocs": 3}, "unknown key 'epocs'; did you mean 'epochs'?"),
    ({"zzz": 3}, "unknown key 'zzz'; known are model, layers, imports, data, "),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(values, "recipe x: ")
    assert str(caught.value).startswith(f"recipe x: {message}")


@pytest.mark.parametrize(
    ("recipe", "typed", "message"),
    [
        (
            "simple-cnn",
            {"gamma": 0.8},
            "--gamma: has no effect with --schedule cosine; it needs --schedule exponential or ",
        ),
        ("simple-cnn-32", {"gamma": 0.8, "schedule": "constant"}, "--gamma: has no effect with --schedule constant; "),
        (
            "simple-cnn",
            {"plateau_patience": 2, "schedule": "step"},
            "--plateau-patience: has no effect with --schedule step",
        ),
        ("simple-cnn", {"init_std": 0.1}, "--init-std: has no effect with --init he; it needs --init normal"),
        (
            "resnet20",
            {"dropout": 0.2},
            "--dropout: has no effect: the network has no dropout layer without p; add one, or ",
        ),
        ("fast", {"validation": 0.0, "holdout": "last"}, "--holdout: has no effect without validation samples"),
        ("fast", {"validation": 0.0, "monitor": "loss"}, "--monitor: has no effect without validation samples"),
    ],
)
def test_options_without_an_effect_are_refused(recipe, typed, message):
    with pytest.raises(ConfigError) as caught:
        override(read_recipe(recipe), Namespace(**typed))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("recipe", "typed"),
    [
        ("simple-cnn", {"gamma": 0.5, "schedule": "step"}),
        ("simple-cnn", {"plateau_patience": 2, "schedule": "plateau", "gamma": 0.1}),
        ("simple-cnn-32", {"schedule": "cosine"}),  # the recipe has gamma, but the user has not typed it
        ("mlp-sgd", {"init": "glorot"}),  # likewise init_std
        ("simple-cnn", {"dropout": 0.2}),
        ("resnet20", {"dropout": 0.2, "model": "mlp"}),
        ("resnet20", {"dropout": 0.0}),
        ("fast", {"validation": 0.0}),  # the recipe has another holdout
        ("fast", {"validation": 0.0, "holdout": "stratified"}),
    ],
)
def test_options_with_an_effect_are_taken_over(recipe, typed):
    config = override(read_recipe(recipe), Namespace(**typed))
    assert {name: getattr(config, name) for name in typed} == typed


def test_the_defaults_are_the_recipe_simple_cnn_but_for_the_validation_samples():
    recipe = read_recipe("simple-cnn")
    assert (recipe.validation, recipe.holdout) == (10_000, "last")
    assert replace(recipe, validation=0.1, holdout="stratified") == Config()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lr = " + b"[" * 100_000, "nested too deeply"),
        (b'lr = 1\nmodel = "\xe4"', r"not text in UTF-8 \(at line 2\); store the file in this encoding"),
        (b"seed = " + b"1" * 5_000, "Exceeds the limit"),
        (b"epochs = 1" + b"0" * 400, "--epochs: must be at most 1000000, not a number of more than 64 bits"),
        (b"[[layers]]\nkind = ['x']", r"layer 1: no kind \"\('x',\)\"|layer 1: no kind"),
        (b'[[layers]]\nkind = "conv2d"\nfilters = 3\nkernel_size = ["a", "b"]', "kernel_size: expected int | tuple"),
        (b'[[layers]]\nkind = "conv2d"\nfilters = 3\nkernel_size = [[1], [2]]', "kernel_size: expected int | tuple"),
        (
            b'[[layers]]\nkind = "conv2d"\nfilters = 1_000_000_000\nkernel_size = 3',
            "filters: must be at most 65536",
        ),
        (b'[[layers]]\nkind = "conv2d"\nfilters = 3\nkernel_size = 3\npadding = 20_000', "padding: must be at most 64"),
        (b'[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "flatten"', "flatten2 can't take"),
        (b'[[layers]]\nkind = "linear"\n', "linear1 can't take .*: pixels need a flatten"),
        (
            b'[[layers]]\nkind = "flatten"\n[[layers]]\nkind = "conv2d"\nfilters = 2\nkernel_size = 1',
            "it expects images",
        ),
        (
            b'[[layers]]\nkind = "flatten"\n' + b'[[layers]]\nkind = "linear"\nfeatures = 60_000\n' * 3,
            "at most 268,435,456",
        ),
        (b'[[layers]]\nkind = "scale"\nlow = inf', "low: expected float"),
        (b"x" * 2_000_000, "bytes; at most 1,048,576 are read"),
    ],
)
def test_recipes_of_any_content_are_refused_in_a_line(content, message, tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(str(path)).network((28, 28, 1), 10)


def test_a_recipe_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="not a plain file"):
        read_recipe(str(tmp_path / "r.toml"))


def test_a_folder_in_place_of_a_recipe(tmp_path):
    with pytest.raises(ConfigError, match="run: not a plain file; give a TOML file, as a run's .*/run/config.toml"):
        (tmp_path / "run").mkdir()
        read_recipe(str(tmp_path / "run"))


def test_whole_numbers_are_taken_for_floats():
    assert from_dict({"lr": 1}).lr == 1


def test_recipes_that_can_t_be_read(tmp_path):
    with pytest.raises(
        ConfigError, match="--recipe: no recipe and no file 'nowhere'; recipes are accurate, book-cnn-adagrad, "
    ):
        read_recipe("nowhere")
    broken = tmp_path / "broken.toml"
    broken.write_text("lr = \n")
    with pytest.raises(ConfigError, match=r"recipe .*broken\.toml: Invalid value"):
        read_recipe(str(broken))
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"recipe .*broken\.toml: not text in UTF-8"):
        read_recipe(str(broken))
