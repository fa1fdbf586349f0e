"""The folder of a run: its files, its lock and its checkpoints.

::

    config.toml       the run's options; also a recipe: --recipe RUN/config.toml
    metrics.jsonl     one JSON object a line
    log.txt           the lines that were printed
    checkpoints/      step-00001234.h5 .., last.h5 and best.h5 pointing to two of them
    curves.png .svg   loss and accuracy
    tensorboard/      with --tensorboard: event files
    trace.json        with --trace: all ranks on one time line
    times.json        where each rank's time went, since the run's last start
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
from dpcnn.runs.checkpoint import BEST, LAST, STEP, Checkpoint, prune, read, step_name, steps, store
from dpcnn.runs.events import Event
from dpcnn.runs.progress import Progress

RUNS = Path("runs")
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
WRITTEN = ("config.toml", "metrics.jsonl", "log.txt", "times.json", "trace.json", "curves.png", "curves.svg")
"""The files that a training writes: all are checked before the first one is changed."""

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunFolder:
    """The files of one run; made and written by rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.log = path / "config.toml", path / "metrics.jsonl", path / "log.txt"
        self.checkpoints, self.times = path / CHECKPOINTS, path / "times.json"
        self.trace = path / "trace.json"
        self._lock: Lock | None = None

    def check_started(self) -> None:
        """Make sure that this is the folder of a run, which has written its metrics.

        Raises:
            ConfigError: there is no metrics.jsonl.
        """
        if not self.metrics.is_file():
            raise ConfigError(f"{self.path}: no run's folder: it has no {self.metrics.name}")

    def check_idle(self) -> None:
        """Make sure that no other job trains here now.

        Raises:
            CheckpointError: another one does; the message says which, on which host and since when.
        """
        with self._locking(), Folder(self.path) as folder:
            folder.check_unlocked(LOCK)

    def lock(self) -> str:
        """Keep other jobs away as long as this process lives, in whatever way it ends.

        Returns:
            Nothing, or a warning where this file system keeps no locks.

        Raises:
            CheckpointError: another job trains here.
        """
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        holder = f"process {os.getpid()} of {_user()} on {platform.node()}, since {since}"
        if not self._lock:
            with self._locking(), Folder(self.path) as folder:
                self._lock = folder.lock(LOCK, holder)
        return (
            "" if self._lock else f"warning: {self.path}: no locks here: let no other job train in it at the same time"
        )

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
            CheckpointError: something is here already.
        """
        if self.path.exists() and (not self.path.is_dir() or any(path.name != LOCK for path in self.path.iterdir())):
            what = "belongs to another run" if self.config.exists() else "exists and is not an empty folder"
            raise CheckpointError(f"{self.path}: {what}; give another --out, or continue that run with --resume")

    def open(self, config: Config, progress: Progress, fresh: bool, newest: Path | None = None) -> str:
        """Make the folder, or open it for a run that is resumed, so that its record is that of ``progress``.

        Args:
            newest: the checkpoint that was the newest when the run was read.

        Returns:
            Nothing, or a warning: see :meth:`lock`.

        Raises:
            CheckpointError: it can't be written, another job trains here, or it is not free for a fresh run.
        """
        if fresh:
            self.check_free()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            warning = self.lock()
            if fresh:
                self.check_free()  # another job may have been faster
            if newest and newest != self.newest():
                raise CheckpointError(f"{self.path}: another job has trained here meanwhile; --resume again")
            self._prepare(config, progress)
        except OSError as error:
            place = error.filename or self.path
            raise CheckpointError(f"{place}: can't be written ({error.strerror}); give another --out") from None
        return warning

    def take_over(self, config: Config, progress: Progress) -> str:
        """Go on writing here, in the place of a rank of this job that has died, whatever that has left.

        Returns:
            Nothing, or a warning about the lock.
        """
        warning = ""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            warning = self.lock()
        except CheckpointError:  # its host, or the file server, has not noticed the death
            warning = (
                f"warning: {self.path}: the lock is still that of a rank that has died: let no other job train here"
            )
        self._prepare(config, progress)
        return warning

    def _prepare(self, config: Config, progress: Progress) -> None:
        """Write the configuration and the metrics so far, and remove what a crash has left."""
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
            _point_best(checkpoints, progress.best(config.monitor))

    def read_config(self) -> dict[str, Any]:
        """The options of the run that is here.

        Raises:
            CheckpointError: there is no run here.
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
        """Write one of the folder's other files, in one move."""
        with Folder(self.path) as folder:
            folder.write(path.name, content)

    def newest(self) -> Path | None:
        """The checkpoint of the latest step, or None."""
        found = [path for path in self.checkpoints.glob("step-*.h5") if STEP.fullmatch(path.name)]
        return max(found, key=lambda path: int(path.stem.removeprefix("step-")), default=None)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint under the name of its step, move the pointers, delete old checkpoints.

        Raises:
            CheckpointError: it can't be written; the ones before are untouched.
        """
        name, config = step_name(checkpoint.progress.step), checkpoint.config
        with self._checkpoints() as folder:
            store(folder, name, checkpoint)
            folder.point(LAST, name)
            prune(folder, config.keep, _point_best(folder, checkpoint.progress.best(config.monitor)))

    @contextmanager
    def _checkpoints(self) -> Iterator[Folder]:
        with Folder(self.path) as folder, folder.inside(CHECKPOINTS) as checkpoints:
            yield checkpoints


def remove_leftovers(folder: Folder) -> None:
    """Remove incomplete files that a crash has left."""
    for name in folder.names():
        if name.startswith(".") and name.endswith(".part"):
            folder.remove(name)


def _point_best(checkpoints: Folder, best: Event | None) -> str | None:
    """Let best.h5 be the checkpoint of the best epoch, if that is here; returns its name."""
    name = step_name(best["step"]) if best else None
    if name in steps(checkpoints):
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
    """A new folder for a run that is given none: runs/NAME-DATE-TIME."""
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 100)))
    return next(path for path in map(RUNS.joinpath, names) if not path.exists())


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means: of a run's folder, that of the best epoch, or else the last.

    Raises:
        CheckpointError: the run has no checkpoint.
    """
    if not path.is_dir():
        return path
    found = [RunFolder(path).checkpoints / name for name in (BEST, LAST)]
    for checkpoint in found:
        if checkpoint.exists():
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
