"""Errors that a user, a file or a machine can cause, as one small tree of exceptions.

::

    DpcnnError              one clear line on rank 0, no traceback, exit status 2
     +- ConfigError         a flag, a recipe, or options that contradict a run
     |   +- ImportNeeded    a file is right, but needs a module that the user has not imported
     +- LaunchError         the launcher, the MPI library or the environment
     +- DataError           a data set or its source
     +- CheckpointError     a checkpoint or a run folder
     +- DivergenceError     a loss or a gradient that is not finite
     +- DriftError          ranks that no longer have the same parameters; exit status 1

Any other exception is a bug: the job ends at once with a traceback.
"""

from collections.abc import Collection
from difflib import get_close_matches


class DpcnnError(Exception):
    """An error whose message is one line: the fault, its place, the expected value, and the next step."""

    agreed = False
    """Whether every rank raises this error now, so that the job can end in order."""
    speaker = True
    """Whether this process prints the error: False if the first process of the job prints it for all of them."""
    status = 2
    """The exit status of the command."""


class ConfigError(DpcnnError):
    """A flag, a recipe, or options that contradict a run."""


class ImportNeeded(ConfigError):
    """A file is right, but needs a module that the user has not imported."""


class LaunchError(DpcnnError):
    """The launcher, the MPI library or the environment."""


class DataError(DpcnnError):
    """A data set or its source."""


class CheckpointError(DpcnnError):
    """A checkpoint or a run folder."""


class DivergenceError(DpcnnError):
    """A loss or a gradient that is not finite. It is the sum over all ranks, so all raise the error."""

    agreed = True


class DriftError(DpcnnError):
    """Ranks that no longer have the same parameters. All have compared them, so all raise the error."""

    agreed, status = True, 1


def printable(text: str, keep: str = "") -> str:
    """Text for a terminal or a log, in which control characters and invalid characters are escaped.

    Args:
        keep: characters that stay as they are besides the printable ones, such as the end of a line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def not_installed(package: str, extra: str) -> str:
    """The message for a missing package that an extra of dpcnn installs."""
    return f"the package {package} is not installed; get it: pip install 'dpcnn[{extra}]'"


def unknown_key(key: str, known: Collection[str]) -> str:
    """The message for an unknown key: it names the nearest known key, or all."""
    return f"unknown key {key[:60]!r}; {nearest(key[:60], known)}"


def nearest(word: str, known: Collection[str]) -> str:
    """The hint for an unknown word: the nearest known word, or all."""
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}"


KINDS = {"DpcnnError": DpcnnError}
KINDS |= {kind.__name__: kind for kind in [*DpcnnError.__subclasses__(), *ConfigError.__subclasses__()]}
"""Every class by its name."""
