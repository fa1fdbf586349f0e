"""The parts that all commands share: the parser, the start on every rank, and the exit status.

A command is a module with a parser, a function, and one line that connects them::

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(command, make_parser, argv)


    def make_parser() -> Parser: ...


    def command(comm: SerialComm, options: Namespace) -> int: ...
"""

import argparse
import contextlib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dpcnn import __version__
from dpcnn.base import startup
from dpcnn.base.options import flag_of, options_of, types_of
from dpcnn.config import OWN_NAMES, Config, from_dict, is_module_name, part_names
from dpcnn.errors import CheckpointError, ConfigError, DpcnnError, LaunchError, nearest, printable
from dpcnn.nn.losses import LOSSES
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import detect
from dpcnn.parallel.start import world

DONE, FAULT, MISTAKE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130  # exit statuses

MOST_ERROR = 2_000
"""The most characters of an error's line."""


class HelpShownError(Exception):
    """The parser has printed its help or the version: the command ends here."""


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


def run_command(
    command: Callable[[SerialComm, argparse.Namespace], int],
    make_parser: Callable[[], Parser],
    argv: Sequence[str] | None = None,
    comm: SerialComm | None = None,
    numerics: Callable[[argparse.Namespace], str] | None = None,
) -> int:
    """Parse a command line, call ``command(comm, options)`` on every rank, and return the exit status.

    Args:
        command: returns its exit status.
        make_parser: makes the parser of the command line, once the modules that it names are imported.
        argv: the words after the command's name; None: the words that this process was started with.
        comm: the ranks; None: all ranks of this job.
        numerics: the numerics of the run that the options mean. A process that was started for this command, and has
            others, starts anew before MPI does. Any error is left to the command, which meets it again.
    """

    def parse_together(ranks: SerialComm) -> argparse.Namespace:
        with ranks.fail_together():
            return parse(make_parser, argv, ranks)

    def parse_and_call(ranks: SerialComm) -> int:
        return command(ranks, ranks.transact(lambda: parse_together(ranks)))

    def restart() -> None:
        wanted = None
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            wanted = numerics and numerics(parse(make_parser, argv, SerialComm()))
        startup.restart(wanted)

    return run(parse_and_call, comm, None if argv is not None else restart)


def run(
    command: Callable[[SerialComm], int], comm: SerialComm | None = None, prepare: Callable[[], None] | None = None
) -> int:
    """Call a function on all ranks of this job, or of ``comm``, and return the exit status.

    A DpcnnError that all ranks raise is one line from rank 0. Any other exception on any rank ends
    the whole job at once, with its traceback.

    Args:
        prepare: called before MPI starts.
    """
    _escape_what_the_terminal_lacks()
    try:
        if prepare:
            prepare()
        comm = comm or world()
    except LaunchError as error:
        launch = detect(os.environ)
        if error.speaker and (launch is None or launch.rank == 0):
            tell(error)
        return MISTAKE
    try:
        with np.errstate(all="ignore"):  # the code checks for infinities and NaN where they matter
            return comm.leave(command(comm))
    except HelpShownError:
        return comm.leave(DONE)
    except DpcnnError as error:
        return _end_by_error(comm, error)
    except BrokenPipeError:  # the program that reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _end(comm, DONE)
    except OSError as error:
        return _end_by_error(comm, DpcnnError(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except MemoryError as error:
        return _end_by_memory(comm, error)
    except KeyboardInterrupt:  # before training has begun: there is nothing to save
        comm.abort(INTERRUPTED)
    except BaseException:
        return _end_by_fault(comm)


class PlainOutput(io.TextIOWrapper):
    """An output stream on which control characters, of file names for example, appear as their escapes."""

    def write(self, text: str) -> int:
        return super().write(printable(text, keep="\n\t"))


def _escape_what_the_terminal_lacks() -> None:
    """Let stdout and stderr escape control characters, and characters that their encodings lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, PlainOutput):
            encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
            buffer = stream.detach()
            plain = PlainOutput(buffer, encoding, "backslashreplace", line_buffering=lines, write_through=through)
            setattr(sys, name, plain)


def _end_by_error(comm: SerialComm, error: DpcnnError) -> int:
    if comm.rank == 0 or not error.agreed:
        tell(error)
    return _end(comm, error.status, error.agreed)


def _end_by_memory(comm: SerialComm, error: MemoryError) -> int:
    why = str(error) or "no memory left"
    tell(LaunchError(f"rank {comm.rank}: {why}; give the ranks more, or start fewer per node"))
    return _end(comm, MISTAKE)


def _end_by_fault(comm: SerialComm) -> int:
    text = traceback.format_exc()
    print(f"dpcnn: rank {comm.rank} of {comm.size} failed:\n{text}", file=sys.stderr, flush=True)
    return _end(comm, FAULT)


def _end(comm: SerialComm, status: int, agreed: bool = False) -> int:
    """Return the status if every rank returns it now; otherwise end the whole job with it."""
    if agreed or comm.size == 1:
        return comm.leave(status)
    comm.abort(status)


def tell(error: DpcnnError) -> None:
    """Print an error as one line on stderr, without control characters."""
    words = printable(str(error))
    text = words if len(words) <= MOST_ERROR else f"{words[:MOST_ERROR]} .."
    print(f"dpcnn: error: {text}", file=sys.stderr, flush=True)


def parse(make_parser: Callable[[], Parser], argv: Sequence[str] | None, comm: SerialComm) -> argparse.Namespace:
    """Import the modules that the arguments name, and parse the arguments; only rank 0 prints help."""
    import_modules(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if comm.rank:
        parser._print_message = lambda *_: None  # type: ignore[method-assign]
    return parser.parse_args(argv)


def add_checkpoint(parser: Parser) -> None:
    """Add the argument ``checkpoint``: see :func:`dpcnn.runs.folder.find_checkpoint`."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="RUN|CHECKPOINT",
        help="a run's folder, which stands for its best checkpoint; or a checkpoint",
    )
    add_import(parser)


def check_free(out: Path) -> None:
    """Make sure that nothing exists at the path of a file that a command is going to write.

    Raises:
        CheckpointError: something exists there.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out}: exists; give another --out, or delete it")


def add_config_flags(parser: Parser) -> None:
    """Add a flag for each option of a run, of its optimizer and of its loss; flags that are not typed have no value."""
    add_import(parser)
    for each in options_of(Config):
        _add_flag(parser, each, types_of(Config)[each.name], f"(default {each.default})")
    for title, kinds in (("optimizers", OPTIMIZERS), ("losses", LOSSES)):
        group = parser.add_argument_group(f"options of the {title}")
        for name, owners in _owners(kinds).items():
            each = next(each for each in options_of(owners[0][1]) if each.name == name)
            defaults = {each.default for _, kind in owners for each in options_of(kind) if each.name == name}
            default = f"(default {each.default})" if len(defaults) == 1 else ""
            of = ", ".join(owner for owner, _ in owners)
            _add_flag(group, each, types_of(owners[0][1])[name], f"of {of} {default}")


def _owners(kinds: Mapping[str, type[Any]]) -> dict[str, list[tuple[str, type[Any]]]]:
    """For each option of some optimizers or losses, those that have it."""
    owners: dict[str, list[tuple[str, type[Any]]]] = {}
    for owner, kind in kinds.items():
        for each in options_of(kind):
            owners.setdefault(each.name, []).append((owner, kind))
    return owners


def _add_flag(group: Any, option: Field[Any], kind: type[Any], note: str) -> None:
    flag, text = flag_of(option.name), option.metadata["help"].replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    choices = sorted(option.metadata["choices"] or ())
    metavar = "|".join(choices) or {int: "N", float: "X", str: "NAME"}[kind]
    group.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=f"{text} {note}".rstrip())


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the flag ``--import``: see :func:`import_modules`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=argparse.SUPPRESS,
        metavar="MODULE",
        help="first import a module of yours, which adds layers, optimizers or losses; may be given several times",
    )


def import_modules(words: Sequence[str]) -> None:
    """Import the modules that ``--import`` names in a command line, from the current folder or wherever Python looks.

    Raises:
        ConfigError: there is no such module, or it fails.
    """
    parser = Parser(add_help=False)
    add_import(parser)
    try:
        names = argparse.ArgumentParser.parse_known_args(parser, words)[0].imports
    except (AttributeError, ConfigError):  # none, or one without a value: the command's own parser says so
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
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise ConfigError(
                f"--import {name}: {type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
            ) from None


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The values of the config flags that were typed, by name."""
    names = {*OWN_NAMES, *part_names()}
    return {name: value for name, value in vars(options).items() if name in names}


def retype(flags: dict[str, Any]) -> list[str]:
    """The words of config flags, for a command that starts another command."""
    words = []
    for name, value in flags.items():
        if name == "imports":
            words += [f"--import={module}" for module in value]
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag_of(name)[2:]}")
        else:
            words += [flag_of(name), str(value)]
    return words


def override(config: Config, options: argparse.Namespace) -> Config:
    """A copy of a config, with the values of the flags that were typed.

    Another model drops the layers of the config; another optimizer or loss drops those of its options that it does not
    have.
    """
    typed = given(options)
    values = {**config.as_dict(), **typed}
    if "model" in typed:
        values["layers"] = []
    values["imports"] = list(dict.fromkeys([*config.imports, *typed.get("imports", [])]))
    for key, kinds in (("optimizer", OPTIMIZERS), ("loss", LOSSES)):
        if values[key] != getattr(config, key) and values[key] in kinds:
            dropped = {each.name for each in options_of(kinds[getattr(config, key)])}
            kept = {each.name for each in options_of(kinds[values[key]])} | set(typed)
            values = {name: value for name, value in values.items() if name not in dropped - kept}
    return from_dict(values)
