"""The folder of a run: its files, its lock and its checkpoints.

::

    config.toml       the run's options; also a recipe: --recipe RUN/config.toml
    metrics.jsonl     one JSON object per line
    log.txt           the lines that were printed
    checkpoints/      step-00001234.h5 .., last.h5 and best.h5 pointing to two of them
    curves.png .svg   loss and accuracy
    tensorboard/      with --tensorboard: event files
    trace.json        with --trace: all ranks on one time line
    times.json        the time of each rank by phase, since the run's last start
    .lock             the job that trains here now
"""

import errno
import getpass
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from dpcnn.base.fields import FieldError, load_toml
from dpcnn.base.files import MOST_RECIPE, Folder, Lock, read_bytes
from dpcnn.config import Config, from_dict
from dpcnn.errors import CheckpointError, ConfigError, printable
from dpcnn.runs.checkpoint import Checkpoint, read, store
from dpcnn.runs.events import Event, read_events
from dpcnn.runs.progress import Progress
from dpcnn.runs.step_files import BEST, LAST, prune, step_name, steps

RUNS = Path("runs")
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WRITTEN = ("config.toml", "metrics.jsonl", "log.txt", "times.json", "trace.json", "curves.png", "curves.svg")
"""The files that a training writes: all are checked before the first one is changed."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunFolder:
    """The files of one run; only rank 0 creates and writes them.

    Attributes:
        kept: whether there are such files.
    """

    kept = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.log = path / "config.toml", path / "metrics.jsonl", path / "log.txt"
        self.checkpoints, self.times = path / CHECKPOINTS, path / "times.json"
        self.trace = path / "trace.json"
        self._lock: Lock | None = None

    def check_started(self) -> None:
        """Make sure that this is the folder of a run that has written metrics.

        Raises:
            ConfigError: there is no metrics.jsonl.
        """
        if not self.metrics.is_file():
            raise ConfigError(f"{self.path}: not a run's folder: it has no {self.metrics.name}")

    def check_idle(self) -> None:
        """Make sure that no other job trains here now.

        Raises:
            CheckpointError: another job does; the message has its process, its user, its node and its start.
        """
        with self._locking(), Folder(self.path) as folder:
            folder.check_unlocked(LOCK)

    def lock(self) -> str:
        """Lock the folder for this process. The lock ends with the process, even if the process is killed.

        Returns:
            An empty string, or a warning if this file system has no locks.

        Raises:
            CheckpointError: another job trains here.
        """
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        holder = f"process {os.getpid()} of {_user()} on {platform.node()}, since {since}"
        if not self._lock:
            with self._locking(), Folder(self.path) as folder:
                self._lock = folder.lock(LOCK, holder)
        return "" if self._lock else f"warning: {self.path}: the file system has no locks: start no second job here"

    @contextmanager
    def _locking(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.path}: another job trains here: {printable(str(error.strerror))}; wait for its end, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise

    def check_free(self) -> None:
        """Make sure that a new run may begin here.

        Raises:
            CheckpointError: the folder exists and is not empty.
        """
        if self.path.exists() and not (self.path.is_dir() and all(map(_precedes_config, self.path.iterdir()))):
            what = "belongs to another run" if self.config.exists() else "exists and is not an empty folder"
            raise CheckpointError(f"{self.path}: {what}; give another --out, or continue that run with --resume")

    def open(self, config: Config, progress: Progress, fresh: bool) -> str:
        """Create the folder, or open it to resume its run, and write the events of ``progress`` to metrics.jsonl.

        Args:
            fresh: whether the run is new.

        Returns:
            An empty string, or a warning: see :meth:`lock`.

        Raises:
            CheckpointError: the folder can't be written, another job trains here, or a new run finds it in use.
        """
        if fresh:
            self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            warning = self.lock()
            if fresh:
                self.check_free()  # another job may have been faster
            if (newest := self.newest()) and newest.name != step_name(progress.step):
                raise CheckpointError(f"{self.path}: another job has trained here in the meantime; resume again")
            self._prepare(config, progress)
        except OSError as error:
            path = error.filename or self.path
            raise CheckpointError(f"{path}: can't be written ({error.strerror}); give another --out") from None
        return warning

    def take_over(self, config: Config, progress: Progress) -> str:
        """Continue writing for a rank of this job that has died, whatever files it left.

        Returns:
            An empty string, or a warning about the lock.
        """
        warning = ""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            warning = self.lock()
        except CheckpointError:  # its node, or the file server, has not noticed the death
            warning = f"warning: {self.path}: a rank that has died still holds the lock: start no second job here"
        self._prepare(config, progress)
        return warning

    def _prepare(self, config: Config, progress: Progress) -> None:
        """Write the configuration and the metrics so far, and remove incomplete files."""
        with Folder(self.path) as folder, folder.inside(CHECKPOINTS) as checkpoints:
            folder.check(*WRITTEN)
            if TENSORBOARD in folder.names():
                folder.inside(TENSORBOARD).close()
            for name in (LAST, BEST):
                if (self.checkpoints / name).is_dir():
                    raise OSError(errno.EISDIR, "is a folder, not a link to a checkpoint", str(self.checkpoints / name))
            remove_leftovers(folder)
            remove_leftovers(checkpoints)
            folder.write(self.config.name, tomli_w.dumps(config.as_dict()).encode())
            folder.write(self.metrics.name, b"".join(_line(event) for event in progress.events))
            _point_best(checkpoints, progress.best(config.monitored))

    def ended(self) -> bool:
        """Whether the last line of metrics.jsonl is that of the run's end."""
        try:
            events = read_events(self.metrics)
        except CheckpointError:
            return False
        return bool(events) and events[-1]["event"] == "end"

    def read_config(self) -> dict[str, Any]:
        """The options of the run in this folder.

        Raises:
            CheckpointError: there is no run, or its config.toml is not valid.
        """
        try:
            return from_dict(load_toml(read_bytes(self.config, MOST_RECIPE)), whole=True).as_dict()
        except OSError as error:
            raise CheckpointError(f"{self.path}: no run to resume: {self.config.name}: {error.strerror}") from None
        except (FieldError, ConfigError) as error:
            raise CheckpointError(f"{self.config}: not written by a run: {error}") from None

    def append_event(self, event: Event) -> None:
        """Add a line to metrics.jsonl."""
        with Folder(self.path) as folder, folder.appending(self.metrics.name) as file:
            file.write(_line(event))

    def write(self, path: Path, content: bytes) -> None:
        """Write another file of the folder, as a whole or not at all."""
        with Folder(self.path) as folder:
            folder.write(path.name, content)

    def newest(self) -> Path | None:
        """The checkpoint of the latest step, or None."""
        names = steps(path.name for path in self.checkpoints.glob("*"))
        return self.checkpoints / names[-1] if names else None

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint under the name of its step, move the pointers, delete old checkpoints.

        Raises:
            CheckpointError: the checkpoint can't be written; older checkpoints are untouched.
        """
        name, config = step_name(checkpoint.progress.step), checkpoint.config
        with Folder(self.path) as run, run.inside(CHECKPOINTS) as folder:
            store(folder, name, checkpoint)
            folder.point(LAST, name)
            prune(folder, config.keep, _point_best(folder, checkpoint.progress.best(config.monitored)))


def _precedes_config(path: Path) -> bool:
    """Whether a start that was killed before config.toml was complete can have left this."""
    if path.name == CHECKPOINTS:
        return path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    return path.name == LOCK or (path.name.startswith(".config.toml.") and path.name.endswith(".part"))


def remove_leftovers(folder: Folder) -> None:
    """Remove incomplete files that a crash has left."""
    for name in folder.names():
        if name.startswith(".") and name.endswith(".part"):
            folder.remove(name)


def _point_best(checkpoints: Folder, best: Event | None) -> str | None:
    """Point best.h5 to the checkpoint of the best epoch, if it exists, and return its name."""
    name = step_name(best["step"]) if best else None
    if name in steps(checkpoints.names()):
        checkpoints.point(BEST, name)
        return name
    checkpoints.remove(BEST)
    return None


def _line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name, as in some containers
        return f"user {os.getuid()}"


def dated(name: str) -> Path:
    """A new folder for a run without ``--out``: runs/NAME-DATE-TIME."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 100)))
    return next(path for path in map(RUNS.joinpath, names) if not path.exists())


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at ``path``; for a run's folder, the checkpoint of the best epoch, or otherwise the last one.

    Raises:
        CheckpointError: the run has no checkpoint.
    """
    if not os.path.isdir(path):  # unlike Path.is_dir, it raises no OSError: reading the file gives the reason
        return path
    candidates = [RunFolder(path).checkpoints / name for name in (BEST, LAST)]
    for checkpoint in candidates:
        if os.path.exists(checkpoint):
            return checkpoint
    raise CheckpointError(f"{path}: a folder without {CHECKPOINTS}/{LAST}; give a run's folder or a checkpoint")


def numerics_of(path: Path) -> str:
    """The numerics of the run to which a run's folder or a checkpoint belongs.

    Raises:
        CheckpointError: there is no run or no checkpoint.
    """
    home = RunFolder(path if path.is_dir() else Path(os.path.realpath(path)).parent.parent)
    if home.config.is_file():
        return str(home.read_config()["numerics"])
    return read(find_checkpoint(path)).config.numerics
