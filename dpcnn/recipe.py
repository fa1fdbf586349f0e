"""Recipes: configurations in TOML files, those of dpcnn among them, in dpcnn/recipes/."""

from pathlib import Path

from dpcnn.base.fields import FieldError, load_toml
from dpcnn.base.files import MOST_RECIPE, read_bytes
from dpcnn.config import Config, from_dict
from dpcnn.errors import ConfigError
from dpcnn.nn.models import named_layers


def read_recipe(name: str) -> Config:
    """A recipe by its name, as in dpcnn/recipes/, or by the path of a TOML file, whose name is that of its ``layers``.

    Raises:
        ConfigError: there is none, or it is wrong.
    """
    folder = Path(__file__).with_name("recipes")
    named = sorted(path.stem for path in folder.glob("*.toml"))
    try:
        content = (folder / f"{name}.toml").read_bytes() if name in named else read_bytes(Path(name), MOST_RECIPE)
        return from_dict(named_layers(load_toml(content), Path(name).stem), f"recipe {name}: ")
    except FileNotFoundError:
        raise ConfigError(f"--recipe: no recipe and no file {name!r}; recipes are {', '.join(named)}") from None
    except OSError as error:
        hint = f"; give a TOML file, as a run's {Path(name, 'config.toml')}" if Path(name).is_dir() else ""
        raise ConfigError(f"recipe {name}: {error.strerror}{hint}") from None
    except FieldError as error:
        raise ConfigError(f"recipe {name}: {error}") from None
