"""Options: fields of dataclasses with a help text, bounds and choices.

The fields of a run's configuration are options, and so are those of optimizers and losses::

    @dataclass
    class Momentum(Optimizer):
        momentum: float = option(0.9, "momentum", least=0, below=1)

Each option is a flag of the command line and a key of recipes.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, field, fields
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from dpcnn.base.fields import MOST_INTEGER, FieldError, name, short
from dpcnn.errors import ConfigError

Scalar = int | float | str | bool
Value = Scalar | tuple[float, ...]


def option(
    default: Value,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float = MOST_INTEGER,
    choices: Collection[str] | None = None,
    free: bool = False,
    later: bool = False,
) -> Any:
    """A field of a dataclass with bounds.

    Args:
        choices: all allowed values, looked up when a value is checked.
        free: whether the value may change when a run is resumed.
        later: whether the files of older versions lack the value, and mean the default.
    """
    bounds = {"least": least, "above": above, "below": below, "most": most}
    more = {"choices": choices, "free": free, "later": later}
    return field(default=default, metadata={"help": help, "bounds": bounds, **more})


def options_of(owner: type[Any]) -> list[Field[Any]]:
    """The options of a dataclass, in order."""
    return [each for each in fields(owner) if "help" in each.metadata]


types_of: Callable[[Any], dict[str, type[Any]]] = cache(get_type_hints)
"""The types of a dataclass's fields or of a function's parameters, by name."""


def flag_of(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def check_options(instance: Any) -> None:
    """Check the values of all options of a dataclass.

    Raises:
        ConfigError: a value of the wrong type, out of its bounds or not among the choices.
    """
    for each in options_of(type(instance)):
        check(each, types_of(type(instance))[each.name], getattr(instance, each.name))


def check(option: Field[Any], kind: type[Any], value: Any) -> None:
    """Check a value against the type, bounds and choices of its option, or raise ConfigError."""
    flag = flag_of(option.name)
    if is_list(kind):
        _check_list(option, kind, value)
        return
    if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
        raise ConfigError(f"{flag}: expected {kind.__name__}, not {short(value)}")
    choices = option.metadata["choices"]
    if choices is not None and value not in choices:
        raise ConfigError(f"{flag}: no {value!r}; choose from {', '.join(sorted(choices))}")
    if isinstance(value, str):
        if not value and not option.default:
            return
        try:
            name(value, flag)
        except FieldError as error:
            raise ConfigError(str(error)) from None
    elif not isinstance(value, bool):
        _check_bounds(flag, value, option.metadata["bounds"])


def is_list(kind: type[Any]) -> bool:
    """Whether the values of an option of this type are lists."""
    return get_origin(kind) is tuple


def _check_list(option: Field[Any], kind: type[Any], values: Any) -> None:
    if not isinstance(values, list | tuple):
        raise ConfigError(f"{flag_of(option.name)}: expected a list of numbers, not {short(values)}")
    for value in values:
        check(option, get_args(kind)[0], value)


def _check_bounds(flag: str, value: float, bounds: Mapping[str, float | None]) -> None:
    if abs(value) == math.inf:
        raise ConfigError(f"{flag}: must be a number, not {value}")
    least, above, below, most = (bounds[key] for key in ("least", "above", "below", "most"))
    if least is not None and not value >= least:
        raise ConfigError(f"{flag}: must be at least {least}, not {short(value)}")
    if above is not None and not above < value:
        raise ConfigError(f"{flag}: must be a number above {above}, not {short(value)}")
    if below is not None and not value < below:
        raise ConfigError(f"{flag}: must be below {below}, not {short(value)}")
    if most is not None and not value <= most:
        raise ConfigError(f"{flag}: must be at most {most}, not {short(value)}")
