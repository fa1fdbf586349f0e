"""The terminal or notebook that shows the output of a job, and a progress bar on it."""

import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from dpcnn.parallel.launch import launcher

if TYPE_CHECKING:
    from tqdm import tqdm

NOTEBOOK_COLUMNS = 110
"""The width of a bar in a notebook."""


def terminal(descriptor: int) -> str | None:
    """The path of the terminal that shows a job's stdout (1) or stderr (2); None for a file or a pipe.

    A launcher receives its ranks' output through pipes, or gives them a terminal of its own. So the
    launcher's own output counts.
    """
    above = launcher()
    try:
        path = os.readlink(f"/proc/{above[0] if above else 'self'}/fd/{descriptor}")
    except OSError:
        return None
    return path if path.startswith(("/dev/pts/", "/dev/tty")) else None


def open_terminal(path: str | None) -> TextIO | None:
    """Open a terminal for writing; None if there is none or it can't be opened."""
    try:
        return open(path, "w", encoding="utf-8", errors="backslashreplace") if path else None
    except OSError:
        return None


def in_notebook() -> bool:
    """Whether what this process prints appears in a notebook, which shows a bar by carriage returns."""
    return type(sys.stdout).__module__ == "ipykernel.iostream"


def image_bar(terminal: TextIO, images: int, done: int, line: str) -> "tqdm[Any] | None":
    """A bar that counts images; None if the terminal has no width.

    Args:
        terminal: a terminal, or a notebook's stdout.
        images: the number of all images.
        done: the number of those that are done already.
        line: the format of the bar's line, for tqdm.
    """
    notebook = in_notebook()
    if not notebook and not os.get_terminal_size(terminal.fileno()).columns:
        return None
    from tqdm import tqdm  # not before: most ranks draw no bar

    return tqdm(
        total=images,
        initial=done,
        unit=" images",
        unit_scale=True,
        mininterval=0.2,
        ncols=NOTEBOOK_COLUMNS if notebook else None,
        dynamic_ncols=not notebook,
        file=terminal,
        bar_format=line,
        postfix=[""],
    )
