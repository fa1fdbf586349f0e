"""A run's folder: what lies in it, who may write there, and its checkpoints.

::

    config.toml       the run's options; also a recipe: --recipe RUN/config.toml
    metrics.jsonl     one JSON object a line
    log.txt           what was said
    checkpoints/      step-00001234.h5 .., last.h5 and best.h5 pointing to two of them
    curves.png .svg   loss and accuracy
    tensorboard/      with --tensorboard: event files
    trace.json        with --trace: all ranks on one time line
    times.json        where each rank's time went, since the run's last start
"""

import json
import os
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w

from dpcnn.checkpoint import BEST, LAST, Checkpoint, point, prune, step_name, write
from dpcnn.config import Config
from dpcnn.errors import CheckpointError
from dpcnn.metrics import Cursor, Event


class RunFolder:
    """The files of one run; made and written by rank 0 alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics, self.log = path / "config.toml", path / "metrics.jsonl", path / "log.txt"
        self.checkpoints, self.times = path / "checkpoints", path / "times.json"
        self.trace = path / "trace.json"

    def check_free(self) -> None:
        """Make sure that a new run may begin here.

        Raises:
            CheckpointError: something is here already.
        """
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            what = "belongs to another run" if self.config.exists() else "exists and is not an empty folder"
            raise CheckpointError(f"{self.path}: {what}; give another --out, or go on with that run: --resume")

    def open(self, config: Config, cursor: Cursor, fresh: bool) -> None:
        """Make the folder, or take it up again where a run is resumed, so that it tells of the cursor.

        Raises:
            CheckpointError: it can't be written, or is not free for a fresh run.
        """
        if fresh:
            self.check_free()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for leftover in (*self.path.glob(".*.part"), *self.checkpoints.glob(".*.part")):
                leftover.unlink()
            replace_file(self.config, tomli_w.dumps(asdict(config)).encode())
            replace_file(self.metrics, "".join(json.dumps(event) + "\n" for event in cursor.events).encode())
            self.point_best(cursor.best)
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be written ({error.strerror}); give another --out") from None

    def read_config(self) -> dict[str, Any]:
        """The options of the run that is here.

        Raises:
            CheckpointError: there is no run here.
        """
        try:
            return tomllib.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: no run to resume: {error}") from None

    def append_event(self, event: Event) -> None:
        """Add a line to metrics.jsonl."""
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def newest(self) -> Path | None:
        """The checkpoint with the highest step, or None."""
        return max(self.checkpoints.glob("step-*.h5"), default=None)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint under the name of its step, move the pointers, delete what is too old.

        Raises:
            CheckpointError: it can't be written; the ones before are untouched.
        """
        name = step_name(checkpoint.cursor.step)
        write(self.checkpoints / name, checkpoint)
        point(self.checkpoints, LAST, name)
        self.point_best(checkpoint.cursor.best)
        prune(self.checkpoints, checkpoint.config.keep)

    def point_best(self, best: Event | None) -> None:
        """Let best.h5 be the checkpoint of the best epoch, if that is here."""
        name = step_name(best["step"]) if best else None
        point(self.checkpoints, BEST, name if name and (self.checkpoints / name).is_file() else None)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one move: the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
