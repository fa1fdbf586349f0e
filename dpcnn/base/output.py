"""The standard output and error of this process."""

import os
import sys


def flush() -> None:
    """Write what has been printed, and discard what can't be written: it would fail again when Python ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # closed before this process began
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            stream.flush()
