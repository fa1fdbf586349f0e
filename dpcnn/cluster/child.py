"""A child process that ends its parent, if that does not move any more."""

import math
import os
import select
import signal

BEAT = 0.5  # seconds between heartbeats
STACKS = 1.0  # seconds in which ranks must answer when they are asked for their stacks


def end_after(seconds: float, line: str) -> int | None:
    """Leave a child process that ends this one, with a line to stderr, if it does not end by itself in time.

    Seconds in which both are suspended don't count.

    Returns:
        A descriptor: each byte that is written there starts the time anew. None: there is no child.
    """
    waiting, beating = os.pipe()  # its other end is closed when this process ends
    watched = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no memory for it: then nobody notices
        return None
    if child:
        os.close(waiting)
        return beating
    try:
        os.dup2(waiting, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))  # whose end launchers may be waiting for
        left = math.ceil(seconds / BEAT)
        while left:
            left -= 1
            if select.select([3], [], [], BEAT)[0]:
                if not os.read(3, 1024):
                    os._exit(0)
                left = math.ceil(seconds / BEAT)
        if select.select([], [2], [], STACKS)[1]:
            os.write(2, line.encode())
        os.kill(watched, signal.SIGKILL)
    finally:
        os._exit(0)
