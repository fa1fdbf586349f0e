"""Commands in this process, with threads as their ranks: the real code without the start of a job.

What is about launchers, signals, environments or MPI itself needs a real job: see ``run`` in conftest.py.
"""

import contextlib
import gc
import importlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from threads import Aborted, ThreadComm, run_ranks

import dpcnn
from dpcnn import cli
from dpcnn.data import __main__ as data
from dpcnn.parallel.comm import SerialComm

ROOT = Path(dpcnn.__file__).parents[1]


@dataclass
class Result:
    """How a job or a command has ended.

    Attributes:
        status: the exit status.
        out, err: what all its ranks have printed.
        seconds: from its start to its end.
    """

    status: int
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The error lines of dpcnn, from all ranks."""
        return [line for line in self.err.splitlines() if line.startswith("dpcnn: error: ")]


def dispatch(comm: SerialComm, words: Sequence[str]) -> None:
    """Do what ``dpcnn data WORDS`` does, and raise its errors."""
    data.command(comm, data.make_parser().parse_args(words))


def command(
    name: str,
    *words: str | Path,
    ranks: int | Sequence[int] = 1,
    cwd: Path = ROOT,
    dying: Mapping[int, int] | None = None,
) -> Result:
    """Run ``dpcnn NAME WORDS``.

    Args:
        ranks: the number of ranks of one node, or those of each node.
        cwd: the current folder of the command.
        dying: the ranks that are to die, and in which of its operations each does: see :func:`threads.run_ranks`.
    """
    main = importlib.import_module("dpcnn.data.__main__" if name == "data" else f"dpcnn.{name}").main
    argv, nodes = [str(word) for word in words], [ranks] if isinstance(ranks, int) else ranks
    out, err, started = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd), _signals_left_alone():
        status = _status(nodes, lambda: main(argv), dying)
    if status or dying:
        gc.collect()  # a traceback may hold the run's lock and open files
    return Result(status, out.getvalue(), err.getvalue(), time.monotonic() - started)


def training(*words: str | Path, ranks: int | Sequence[int] = 1, cwd: Path = ROOT) -> Result:
    """Run ``dpcnn train WORDS``, without its picture and without a watch over threads."""
    return command("train", "--no-curves", "--stall-timeout", "0", *words, ranks=ranks, cwd=cwd)


def _status(nodes: Sequence[int], main: Callable[[], int], dying: Mapping[int, int] | None) -> int:
    """The highest exit status of all ranks."""
    rank = threading.local()

    def run(comm: ThreadComm) -> int:
        rank.comm = comm
        return main()

    with mock.patch.object(cli, "world", lambda: rank.comm):
        try:
            return max(status for status in run_ranks(nodes, run, dying) if status is not None)
        except Aborted as end:
            return end.status


@contextlib.contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Signals belong to pytest, and only the main thread may handle them."""
    with mock.patch("dpcnn.training.run.listen"), mock.patch("dpcnn.training.run.ignore"):
        yield
