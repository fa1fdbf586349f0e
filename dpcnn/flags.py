"""The flags for the options of a run, and ``--import``."""

import argparse
import importlib
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import Field
from functools import partial
from typing import Any

from dpcnn.base.imports import is_module_name
from dpcnn.base.options import flag_of, is_list, options_of, types_of
from dpcnn.config import AUTO, OWN_NAMES, Config, from_dict, part_names
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import LOSSES
from dpcnn.nn.models import MODELS
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.optim.schedules import PLATEAU

Kinds = Mapping[str, tuple[Any, Sequence[str]]]
"""For each option of a command, its default, and the kinds of work that use the option."""


def add_config_flags(parser: argparse.ArgumentParser, hidden: Collection[str] = ()) -> None:
    """Add a flag for each option of a run, of its optimizer and of its loss; flags that are not typed have no value.

    Args:
        hidden: the options that the help omits, because the command refuses them.
    """
    add_import(parser)
    for each in options_of(Config):
        default = "none" if each.default == "" else each.default
        _add_flag(parser, each, types_of(Config)[each.name], f"(default {default})", each.name in hidden)
    for title, kinds in (("optimizers", OPTIMIZERS), ("losses", LOSSES)):
        group = parser.add_argument_group(f"options of the {title}")
        for name, owners in _owners(kinds).items():
            each = next(each for each in options_of(owners[0][1]) if each.name == name)
            defaults = {each.default for _, kind in owners for each in options_of(kind) if each.name == name}
            default = f"; default {each.default}" if len(defaults) == 1 and defaults != {()} else ""
            of = ", ".join(owner for owner, _ in owners)
            _add_flag(group, each, types_of(owners[0][1])[name], f"(for {of}{default})")


def _owners(kinds: Mapping[str, type[Any]]) -> dict[str, list[tuple[str, type[Any]]]]:
    """For each option of some optimizers or losses, those that have it."""
    owners: dict[str, list[tuple[str, type[Any]]]] = {}
    for owner, kind in kinds.items():
        for each in options_of(kind):
            owners.setdefault(each.name, []).append((owner, kind))
    return owners


def _add_flag(group: Any, option: Field[Any], kind: type[Any], note: str, hidden: bool = False) -> None:
    text = option.metadata["help"].replace("%", "%%")
    told = argparse.SUPPRESS if hidden else text if kind is bool else f"{text} {note}".rstrip()
    add = partial(group.add_argument, flag_of(option.name), default=argparse.SUPPRESS, help=told)
    if kind is bool:
        add(action=argparse.BooleanOptionalAction)
    elif is_list(kind):
        add(type=numbers, metavar="X,X,..")
    else:
        choices = sorted(option.metadata["choices"] or ())
        add(type=kind, metavar="|".join(choices) or {int: "N", float: "X", str: "NAME"}[kind])


def numbers(text: str) -> list[float]:
    """Numbers separated by commas: for argparse."""
    return [float(word) for word in text.split(",")]


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--import``: see :func:`import_modules`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=argparse.SUPPRESS,
        metavar="MODULE",
        help="first import your own module, which adds layers, optimizers or losses; can be repeated",
    )


def import_modules(words: Sequence[str]) -> None:
    """Import the modules that ``--import`` names in a command line, from the current folder or wherever Python looks.

    Raises:
        ConfigError: there is no such module, or it fails.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_import(parser)
    try:
        names = parser.parse_known_args(words)[0].imports
    except (AttributeError, argparse.ArgumentError):  # none, or one without a value: the command's own parser says so
        return
    if "" not in sys.path:
        sys.path.append("")  # last: so that no file of the current folder hides a library
    for name in names:
        if not is_module_name(name):
            raise ConfigError(f"--import: expected the name of a module, as in an import statement, not {name[:60]!r}")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(f"--import {name}: no module {error.name!r} here or installed") from None
        except (Exception, SystemExit) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            of_itself = isinstance(error, SyntaxError)  # its message has the place
            where = "" if of_itself else f" ({last.filename}, line {last.lineno})"
            raise ConfigError(f"--import {name}: {type(error).__name__}: {error}{where}") from None


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The values of the config flags that were typed, by name."""
    names = {*OWN_NAMES, *part_names()}
    return {name: value for name, value in vars(options).items() if name in names}


def complete(options: argparse.Namespace, table: Kinds, asked: str, usual: str) -> None:
    """Fill in the defaults of a command's own options.

    Args:
        asked: the kind of work that the command is to do.
        usual: the kind for which there is no flag.

    Raises:
        ConfigError: an option is given that this kind of work does not use.
    """
    for name, (default, kinds) in table.items():
        value = getattr(options, name)
        if value is None or value is False:
            setattr(options, name, default)
        elif asked not in kinds:
            effect = f"no effect with --{asked}" if usual in kinds else f"an effect only with --{' or --'.join(kinds)}"
            raise ConfigError(f"{flag_of(name)}: has {effect}; leave it out")


def refuse_others(options: argparse.Namespace, known: Collection[str], why: str) -> None:
    """Refuse the config flags that were typed, except ``known`` ones; ``why`` they have no effect ends the message.

    Raises:
        ConfigError: one was typed.
    """
    for name in sorted(given(options).keys() - set(known)):
        raise ConfigError(f"{flag_of(name)}: has no effect {why}; leave it out")


def retype(flags: dict[str, Any]) -> list[str]:
    """The words of config flags, for a command that starts another command."""
    words = []
    for name, value in flags.items():
        if name == "imports":
            words += [f"--import={module}" for module in value]
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag_of(name)[2:]}")
        elif isinstance(value, list | tuple):
            words += [flag_of(name), ",".join(map(str, value))]
        else:
            words += [flag_of(name), str(value)]
    return words


def override(config: Config, options: argparse.Namespace) -> Config:
    """A copy of a config, with the values of the flags that were typed.

    Another model drops the layers of the config, and another source of a warm start drops its sha256; another optimizer
    or loss drops those of its options that it does not have.

    Raises:
        ConfigError: a wrong value, or an option that has no effect.
    """
    typed = given(options)
    values = {**config.as_dict(), **typed}
    if "model" in typed:
        values["layers"] = []
    if values["init_from"] != config.init_from and "init_from_sha256" not in typed:
        values["init_from_sha256"] = ""
    values["imports"] = list(dict.fromkeys([*config.imports, *typed.get("imports", [])]))
    for key, kinds in (("optimizer", OPTIMIZERS), ("loss", LOSSES)):
        if values[key] != getattr(config, key) and values[key] in kinds:
            dropped = {each.name for each in options_of(kinds[getattr(config, key)])}
            kept = {each.name for each in options_of(kinds[values[key]])} | set(typed)
            values = {name: value for name, value in values.items() if name not in dropped - kept}
    changed = from_dict(values)
    _check_effect(changed, typed)
    return changed


EFFECTIVE = {
    "gamma": ("schedule", ("exponential", "step", PLATEAU)),
    "plateau_patience": ("schedule", (PLATEAU,)),
    "init_std": ("init", ("normal",)),
}
"""Options that matter only with some values of another option: its name, and these values."""


def _check_effect(config: Config, typed: Mapping[str, Any]) -> None:
    """Refuse options that were typed and change nothing; a recipe may have them, because users change its others."""
    for name, (other, values) in EFFECTIVE.items():
        flag, now = flag_of(other), getattr(config, other)
        if name in typed and now not in values:
            raise ConfigError(
                f"{flag_of(name)}: has no effect with {flag} {now}; it needs {flag} {' or '.join(values)}"
            )
    for name, default in (("holdout", "stratified"), ("monitor", AUTO)):
        if not config.validation and typed.get(name, default) != default:
            raise ConfigError(f"{flag_of(name)}: has no effect without validation samples; leave it out, or give some")
    layers = config.layers or MODELS[config.model]
    if typed.get("dropout") and not any(layer.get("kind") == "dropout" and "p" not in layer for layer in layers):
        raise ConfigError(
            "--dropout: has no effect: the network has no dropout layer without p; add one, or change p in its layers"
        )
