"""What every command shares: flags from the config's fields, and one way to end."""

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn

from dpcnn.config import TYPES, Config, from_dict
from dpcnn.errors import ConfigError, DpcnnError, LaunchError
from dpcnn.parallel.comm import Alone, world

DONE, FAULT, MISTAKE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130  # exit status


class HelpShownError(Exception):
    """The help that was asked for has been printed, and nothing else is to be done."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, as exceptions, and no shortened flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShownError

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def run(command: Callable[[Alone], int], comm: Alone | None = None) -> int:
    """Run a command on all ranks of this job, or of ``comm``, and return its exit status.

    A DpcnnError that all ranks raise is one line from rank 0. Any other exception on any rank ends
    the whole job at once, with its traceback.
    """
    try:
        comm = comm or world()
    except LaunchError as error:
        if error.speaker:
            print(f"dpcnn: error: {error}", file=sys.stderr)
        return MISTAKE
    try:
        return command(comm)
    except DpcnnError as error:
        if comm.rank == 0 or not error.agreed:
            print(f"dpcnn: error: {error}", file=sys.stderr, flush=True)
        if error.agreed or comm.size == 1:
            return error.status
        comm.abort(error.status)
    except HelpShownError:
        return DONE
    except KeyboardInterrupt:  # before training has begun: there is nothing to save
        comm.abort(INTERRUPTED)
    except BaseException:
        text = "".join(traceback.format_exc())
        print(f"dpcnn: rank {comm.rank} of {comm.size} failed:\n{text}", file=sys.stderr, flush=True)
        if comm.size == 1:
            return FAULT
        comm.abort(FAULT)


def parse(parser: Parser, argv: Sequence[str] | None, comm: Alone) -> argparse.Namespace:
    """The parsed arguments; help is printed by rank 0 alone."""
    if comm.rank:
        parser._print_message = lambda *_: None  # type: ignore[method-assign]
    return parser.parse_args(argv)


def add_config_flags(parser: Parser) -> None:
    """A flag for each field of :class:`~dpcnn.config.Config`; those not given are left out."""
    for option in fields(Config):
        if option.name == "layers":  # in recipes only
            continue
        choices = option.metadata["choices"]
        parser.add_argument(
            "--" + option.name.replace("_", "-"),
            type=TYPES[option.name],
            default=argparse.SUPPRESS,
            metavar="|".join(choices) if choices else {int: "N", float: "X", str: "NAME"}[TYPES[option.name]],
            help=f"{option.metadata['help']} (default {option.default})",
        )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The config flags that were typed."""
    names = {option.name for option in fields(Config)}
    return {name: value for name, value in vars(options).items() if name in names}


def retype(flags: dict[str, Any]) -> list[str]:
    """Config values as they would be typed, for a command that starts another."""
    return [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), str(value))]


def override(config: Config, options: argparse.Namespace) -> Config:
    """A config with the flags that were typed in place of its own values."""
    typed = given(options)
    layers: dict[str, Any] = {"layers": []} if "model" in typed else {}
    return from_dict({**asdict(config), **layers, **typed})
