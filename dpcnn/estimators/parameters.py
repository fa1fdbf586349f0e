"""The parameters of a model from Python, as scikit-learn handles them, and the configuration that they stand for."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from dpcnn.base import startup
from dpcnn.base.arrays import Shape
from dpcnn.base.fields import FieldError, Table
from dpcnn.config import OWN_NAMES, Config, from_dict, part_names
from dpcnn.data.pixels import LEAST_WHITE, MOST_WHITE
from dpcnn.data.shards import MOST_SIDE
from dpcnn.errors import ConfigError, unknown_key
from dpcnn.flags import override
from dpcnn.nn.models import named_layers
from dpcnn.recipe import read_recipe
from dpcnn.training.resume import recipe_of

Recipe = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, Any]
OWN = ("recipe", "image_shape", "max_value", "verbose")
"""The parameters of a model besides the options of a recipe."""


class Parameters:
    """The parameters of a model: ``clone``, ``Pipeline`` and ``GridSearchCV`` of scikit-learn read and set them.

    Args:
        recipe: the name of a recipe, the path of a TOML file, the same as a dictionary, or a list of layers, each a
            dictionary. None: simple-cnn; with the option ``init_from``, the network and options of that checkpoint.
        image_shape: (H, W, C) of the images, for arrays (n, F) whose rows are not square grey images.
        max_value: the value of white in the arrays; None: 255 for whole numbers, 1 for floats.
        verbose: whether to print what ``dpcnn train`` prints.
        options: any options of a recipe, such as ``epochs``; of its optimizer and its loss, too.

    Raises:
        ConfigError: an option is unknown. Values are checked by ``fit``.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        *,
        image_shape: Shape | None = None,
        max_value: float | None = None,
        verbose: bool = True,
        **options: Any,
    ) -> None:
        self.recipe, self.image_shape, self.max_value, self.verbose = recipe, image_shape, max_value, verbose
        self.options: dict[str, Any] = {}
        self.set_params(**options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name: the options that were given, not those that the recipe decides.

        Args:
            deep: of no effect; scikit-learn gives it.
        """
        return {**{name: getattr(self, name) for name in OWN}, **self.options}

    def set_params(self, **params: Any) -> Self:
        """Change parameters; ``fit`` uses them.

        Raises:
            ConfigError: one is unknown.
        """
        known = [*OWN, *OWN_NAMES, *sorted(part_names())]
        for name, value in params.items():
            if name not in known:
                raise ConfigError(f"{type(self).__name__}: {unknown_key(name, known)}")
            if name in OWN:
                setattr(self, name, value)
            else:
                self.options[name] = value
        return self

    def __repr__(self) -> str:
        recipe, own = self.recipe, {name: getattr(self, name) for name in OWN[1:]}
        default = {"image_shape": None, "max_value": None, "verbose": True}
        given = {name: value for name, value in own.items() if value is not default[name]} | self.options
        words = [*([] if recipe is None else [_short(recipe)]), *(f"{name}={given[name]!r}" for name in given)]
        return f"{type(self).__name__}({', '.join(words)})"

    def base(self) -> Config:
        """The configuration of the recipe.

        Raises:
            CheckpointError, ConfigError: there is none, or it is wrong.
        """
        if self.recipe is None:
            return recipe_of(Namespace(recipe=None, init_from=self.options.get("init_from", "")))
        if isinstance(self.recipe, str | Path):
            return read_recipe(str(self.recipe))
        values = self.recipe if isinstance(self.recipe, Mapping) else {"layers": self.recipe}
        try:
            return from_dict(named_layers(json.loads(json.dumps(values)), "layers"), "recipe: ")
        except TypeError as error:
            raise ConfigError(f"recipe: expected numbers, texts and lists, as in a TOML file: {error}") from None

    def form(self) -> tuple[Shape | None, float | None]:
        """``image_shape`` and ``max_value``.

        Raises:
            ConfigError: one of them is wrong.
        """
        given = {"image_shape": self.image_shape, "max_value": self.max_value}
        table = Table({name: _plain(value) for name, value in given.items()})
        try:
            shape = None if self.image_shape is None else table.integers("image_shape", 3, 1, MOST_SIDE)
            return shape, None if self.max_value is None else table.number("max_value", LEAST_WHITE, MOST_WHITE)
        except FieldError as error:
            raise ConfigError(f"{type(self).__name__}: {error}") from None

    def config(self, options: Mapping[str, Any]) -> Config:
        """The configuration of the recipe with other options; its numerics are those of this process.

        Raises:
            ConfigError: an option has a wrong value, or the recipe asks for other numerics.
        """
        base = self.base()
        numerics = {"numerics": startup.numerics} if base.numerics == startup.NUMERICS[0] else {}
        values = {name: _plain(value) for name, value in options.items()}
        return override(base, Namespace(**{**numerics, **values}))


def _plain(value: Any) -> Any:
    """A value as a TOML file would have it."""
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _short(recipe: Recipe) -> str:
    if isinstance(recipe, Mapping):
        return f"{{'model': {recipe.get('model', '')!r}, ..}}"
    return repr(str(recipe)) if isinstance(recipe, str | Path) else f"[{len(recipe)} layers]"
