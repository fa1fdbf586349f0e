"""Options: their bounds, recipes, and what is said of a mistake."""

import pytest

from dpcnn.config import Config, from_dict, read_recipe
from dpcnn.errors import ConfigError

MISTAKES = [
    ({"patience": 2, "validation": 0}, "--patience: needs --validation samples"),
    ({"batch": 0}, "--batch: must be at least 1, not 0"),
    ({"seed": -1}, "--seed: must be at least 0, not -1"),
    ({"lr": 0.0}, "--lr: must be a number above 0, not 0.0"),
    ({"lr": float("nan")}, "--lr: must be a number above 0, not nan"),
    ({"lr": float("inf")}, "--lr: must be a number, not inf"),
    ({"shift": float("inf")}, "--shift: must be a number, not inf"),
    ({"average": 1.0}, "--average: must be below 1, not 1.0"),
    ({"clip": -1.0}, "--clip: must be at least 0, not -1.0"),
    ({"label_smoothing": 1.0}, "--label-smoothing: must be below 1, not 1.0"),
    ({"model": "resnet"}, "--model: no 'resnet'; choose from mlp, simple-cnn"),
    ({"optimizer": "lion"}, "--optimizer: no 'lion'; choose from adagrad, adam, adamw, "),
    ({"epochs": 2.5}, "--epochs: expected int, not 2.5"),
    ({"epochs": True}, "--epochs: expected int, not True"),
    ({"data": 3}, "--data: expected str, not 3"),
    ({"epocs": 3}, "unknown key 'epocs'; did you mean 'epochs'?"),
    ({"zzz": 3}, "unknown key 'zzz'; known are model, layers, data, "),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(values, "recipe x: ")
    assert str(caught.value).startswith(f"recipe x: {message}")


def test_the_defaults_are_the_recipe_simple_cnn():
    assert read_recipe("simple-cnn") == Config()


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
    with pytest.raises(ConfigError, match=r"recipe .*broken\.toml: .*decode"):
        read_recipe(str(broken))
