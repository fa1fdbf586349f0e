"""Runs other modules of this package as separate jobs."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from dpcnn.base.fields import digits
from dpcnn.base.startup import environment
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.flags import retype

MOST = 2**31 - 1
"""The largest number of ranks or nodes, seed or batch."""


def command(module: str, *words: str, launcher: str = "", ranks: int = 1) -> list[str]:
    """The command line of a module on ``ranks`` ranks; without a launcher, of a single process.

    Args:
        launcher: the command that starts the ranks, such as ``mpirun --bind-to none``.
    """
    starter = [*shlex.split(launcher), "-n", str(ranks)] if launcher else []
    return [*starter, sys.executable, "-m", module, *words]


def run(module: str, *words: str, launcher: str = "", ranks: int = 1) -> str:
    """Run a module to its end, and return its output on stdout.

    Raises:
        LaunchError: the job failed; the message has a line of its stderr.
    """
    words = tuple(command(module, *words, launcher=launcher, ranks=ranks))
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise LaunchError(f"{module} ended with status {done.returncode}; it said: {complaint(done.stderr, -1)}")
    return done.stdout


def complaint(stderr: str, otherwise: int) -> str:
    """The line with the reason of a failure: the first one by dpcnn, or else the line with the index ``otherwise``.

    If that line is the title of a traceback, the line of the exception is appended.
    """
    lines = [line for line in stderr.splitlines() if line.strip(" -")] or ["nothing"]
    ours = next((number for number, line in enumerate(lines) if line.startswith("dpcnn: ")), None)
    if ours is None:
        return lines[otherwise]
    if not lines[ours].endswith(" failed:"):
        return lines[ours]
    rest = [line for line in lines[ours + 1 :] if not line.startswith((" ", "Traceback"))]
    return " ".join([lines[ours], *rest[:1]])


def config_words(recipe: str | None, flags: Mapping[str, Any]) -> list[str]:
    """The arguments that give a job a recipe (None: the default recipe) and config values."""
    return [*(["--recipe", recipe] if recipe else []), *retype(dict(flags))]


def numbers(flag: str, typed: str, example: str, least: int = 1, fewest: int = 1) -> list[int]:
    """The whole numbers of a list such as ``1,2,4``.

    Raises:
        ConfigError: an item is not a whole number from ``least`` on, or there are fewer than ``fewest``.
    """
    values = [number for item in typed.split(",") if (number := digits(item)) is not None and least <= number <= MOST]
    if len(values) < max(fewest, len(typed.split(","))):
        many = "at least two numbers" if fewest == 2 else "numbers"
        raise ConfigError(f"{flag}: expected {many} such as {example}, not {typed[:60]}")
    return values
