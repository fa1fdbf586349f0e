"""The parts that all commands share: the parser, the start on every rank, and the exit status.

A command is a module with a parser, a function, and one line that connects them::

    def main(argv: Sequence[str] | None = None) -> int:
        return run_command(command, make_parser, argv)


    def make_parser() -> Parser: ...


    def command(comm: SerialComm, options: Namespace) -> int: ...
"""

import argparse
import contextlib
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dpcnn import __version__
from dpcnn.base import output, startup
from dpcnn.errors import ConfigError, DpcnnError, LaunchError, printable
from dpcnn.flags import add_import, import_modules
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.launch import detect, end_job
from dpcnn.parallel.start import world

DONE, FAULT, MISTAKE, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130  # exit statuses

MOST_ERROR = 2_000
"""The most characters of an error's line."""

HEAD_START = 5.0
"""Seconds that the other processes of a job wait, so that the first one can print an error before they end."""


class HelpShownError(Exception):
    """The parser has printed its help or the version: the command ends here."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, as exceptions, that name the nearest flag; no shortened flags, no empty values.

    The options of a run are no business of this parser: some may be empty.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"dpcnn {__version__}")

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        found, extra = super().parse_known_args(*arguments, **options)
        flags = [word.partition("=")[0] for word in extra if word.startswith("--")]
        if flags:
            known = [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]
            close = get_close_matches(flags[0][2:], known, n=1)
            hint = f"; did you mean '--{close[0]}'?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(extra)}{hint}")
        return found, extra

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.nargs != argparse.PARSER and action.default is not argparse.SUPPRESS and "" in arg_strings:
            raise argparse.ArgumentError(action, "expected a value, not an empty text; leave it out, or give one")
        return super()._get_values(action, arg_strings)

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
        return end_before_start(error)
    except KeyboardInterrupt:  # MPI may be waiting for other ranks, so Python must not end it
        SerialComm().abort(INTERRUPTED)
    try:
        return comm.leave(_complete(command, comm))
    except DpcnnError as error:
        return _end_by_error(comm, error)
    except BrokenPipeError:  # the program that reads the output has seen enough
        output.flush()
        return _end(comm, DONE)
    except OSError as error:
        output.flush()
        return _end_by_error(comm, DpcnnError(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except MemoryError as error:
        return _end_by_memory(comm, error)
    except KeyboardInterrupt:  # before training has begun: there is nothing to save
        return _end(comm, INTERRUPTED)
    except BaseException:
        return _end_by_fault(comm)


def _complete(command: Callable[[SerialComm], int], comm: SerialComm) -> int:
    """The exit status of a command, when all that it has printed is written."""
    try:
        with np.errstate(all="ignore"):  # the code checks for infinities and NaN where they matter
            status = command(comm)
    except HelpShownError:
        status = DONE
    if sys.stdout:
        sys.stdout.flush()
    return status


class PlainOutput(io.TextIOWrapper):
    """An output stream on which control characters, of file names for example, appear as their escapes."""

    def write(self, text: str) -> int:
        with self._named():
            return super().write(printable(text, keep="\n\t"))

    def flush(self) -> None:
        with self._named():
            super().flush()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Put the stream's name into the system's error."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from None


def _escape_what_the_terminal_lacks() -> None:
    """Let stdout and stderr escape control characters, and characters that their encodings lack."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, PlainOutput):
            encoding, lines, through = stream.encoding, stream.line_buffering, stream.write_through
            buffer = stream.detach()
            plain = PlainOutput(buffer, encoding, "backslashreplace", line_buffering=lines, write_through=through)
            setattr(sys, name, plain)


def end_before_start(error: DpcnnError) -> int:
    """Print an error that comes before MPI starts, and return the exit status."""
    launch = detect(os.environ)
    _tell_in_turn(error, first=launch is None or launch.rank == 0)
    if launch:
        end_job(launch, error.status)
    return error.status


def _end_by_error(comm: SerialComm, error: DpcnnError) -> int:
    if comm.rank == 0 or not error.agreed:
        _tell_in_turn(error, first=error.speaker)
    return _end(comm, error.status, error.agreed)


def _tell_in_turn(error: DpcnnError, first: bool) -> None:
    """Print an error, usually once per job, also if the processes can't use MPI to agree on it.

    The first process of the job prints the error and ends, and then mpirun stops the others, which wait. Without the
    wait, another process could end earlier, and mpirun could stop the first process before it prints the error. A
    process that still runs after the wait prints its own error, unless the error is the same for the whole job.
    """
    if not first:
        time.sleep(HEAD_START)
    if error.speaker:
        tell(error)


def _end_by_memory(comm: SerialComm, error: MemoryError) -> int:
    why = f"rank {comm.rank}: {str(error) or 'no memory left'}"
    tell(LaunchError(f"{why}; give the ranks more, start fewer per node, or train with a smaller --microbatch"))
    return _end(comm, MISTAKE)


def _end_by_fault(comm: SerialComm) -> int:
    text = traceback.format_exc()
    _print_error(f"dpcnn: rank {comm.rank} of {comm.size} failed:\n{text}\n")
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
    _print_error(f"dpcnn: error: {text}\n")


def _print_error(text: str) -> None:
    """Print to stderr in one write, so that the output of other ranks can't divide it."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:  # nobody can read it: the status remains
        output.flush()


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


def add_verify(parser: Parser) -> None:
    """Add the flag ``verify``: see :func:`dpcnn.data.dataset.load`."""
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare all data shards with their checksums, also those that have not changed since the last time",
    )
