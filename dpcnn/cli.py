"""What every command shares: flags from the config's fields, and one way to end."""

import argparse
import io
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any, NoReturn

import numpy as np

from dpcnn import __version__
from dpcnn.config import TYPES, Config, from_dict
from dpcnn.errors import ConfigError, DpcnnError, LaunchError, nearest, printable
from dpcnn.parallel.comm import Alone, world

DONE, FAULT, MISTAKE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130  # exit status

MOST_ERROR = 2_000
"""Characters of an error's line."""


class HelpShownError(Exception):
    """The help that was asked for has been printed, and nothing else is to be done."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, as exceptions, that name the nearest flag; and no shortened flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"dpcnn {__version__}")

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        found, extra = super().parse_known_args(*arguments, **options)
        flags = [word.partition("=")[0] for word in extra if word.startswith("--")]
        if flags:
            known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            self.error(f"unrecognized arguments: {' '.join(extra)}; {nearest(flags[0], known)}")
        return found, extra

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShownError

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def run(command: Callable[[Alone], int], comm: Alone | None = None) -> int:
    """Run a command on all ranks of this job, or of ``comm``, and return its exit status.

    A DpcnnError that all ranks raise is one line from rank 0. Any other exception on any rank ends
    the whole job at once, with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")
    try:
        comm = comm or world()
    except LaunchError as error:
        if error.speaker:
            tell(error)
        return MISTAKE
    try:
        with np.errstate(all="ignore"):  # what is not finite is looked for where it matters, and named
            return command(comm)
    except DpcnnError as error:
        if comm.rank == 0 or not error.agreed:
            tell(error)
        if error.agreed or comm.size == 1:
            return error.status
        comm.abort(error.status)
    except HelpShownError:
        return DONE
    except MemoryError as error:
        tell(
            LaunchError(f"rank {comm.rank}: {error or 'no memory left'}; give the ranks more, or start fewer per node")
        )
        if comm.size == 1:
            return MISTAKE
        comm.abort(MISTAKE)
    except KeyboardInterrupt:  # before training has begun: there is nothing to save
        comm.abort(INTERRUPTED)
    except BaseException:
        text = "".join(traceback.format_exc())
        print(f"dpcnn: rank {comm.rank} of {comm.size} failed:\n{text}", file=sys.stderr, flush=True)
        if comm.size == 1:
            return FAULT
        comm.abort(FAULT)


def tell(error: DpcnnError) -> None:
    """Print the one line of a mistake, whatever its words come from."""
    words = printable(str(error))
    text = words if len(words) <= MOST_ERROR else f"{words[:MOST_ERROR]} .."
    print(f"dpcnn: error: {text}", file=sys.stderr, flush=True)


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
        choices, flag = option.metadata["choices"], "--" + option.name.replace("_", "-")
        if TYPES[option.name] is bool:
            yes_or_no = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=yes_or_no, default=argparse.SUPPRESS, help=option.metadata["help"])
            continue
        parser.add_argument(
            flag,
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
    words = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def override(config: Config, options: argparse.Namespace) -> Config:
    """A config with the flags that were typed in place of its own values."""
    typed = given(options)
    layers: dict[str, Any] = {"layers": []} if "model" in typed else {}
    return from_dict({**asdict(config), **layers, **typed})
