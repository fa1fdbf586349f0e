"""Run a command: ``dpcnn COMMAND`` is the same as ``python -m dpcnn.COMMAND``."""

import ast
import importlib
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

from dpcnn import __version__
from dpcnn.base import output
from dpcnn.errors import ConfigError, nearest
from dpcnn.parallel.launch import detect

COMMAND = re.compile(r"(.+): (?:mpirun -n 4 )?dpcnn (\w+)")
"""The start of a command's docstring: its purpose and its call."""


def commands() -> dict[str, str]:
    """The purpose of each command by its name, from the docstrings of the files that are commands."""
    folder, texts = Path(__file__).parent, {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        found = COMMAND.match(ast.get_docstring(ast.parse(path.read_bytes())) or "")
        if found:
            texts[found[2]] = found[1]
    return dict(sorted(texts.items()))


def main() -> int:
    """Run the command that the first word names, and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        show(f"dpcnn {__version__}")
        return 0
    if name in ("", "-h", "--help"):
        lines = (f"  {key:<11}{text}" for key, text in commands().items())
        show("\n".join(["usage: dpcnn COMMAND [--help]\n", *lines]))
        return 0 if name else 2
    if name not in commands():
        from dpcnn.cli import end_before_start  # not before: it loads NumPy

        return end_before_start(ConfigError(f"no command {name!r}; {nearest(name, commands())}; see dpcnn --help"))
    package = (Path(__file__).parent / name).is_dir()
    try:
        module = importlib.import_module(f"dpcnn.{name}.__main__" if package else f"dpcnn.{name}")
    except KeyboardInterrupt:  # nothing has begun
        return 128 + signal.SIGINT
    sys.argv[:2] = [f"dpcnn {name}"]
    status: int = module.main()
    return status


def show(text: str) -> None:
    """Print a text, once per job."""
    launch = detect(os.environ)
    if launch is None or launch.rank == 0:
        with suppress(OSError):  # the program that reads it has seen enough
            print(text)
        output.flush()


if __name__ == "__main__":
    sys.exit(main())
