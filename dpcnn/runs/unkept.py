"""A run without files."""

from pathlib import Path

from dpcnn.config import Config
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Progress


class Unkept(RunFolder):
    """The folder of a run that writes no files: nothing is read from it or written to it."""

    kept = False

    def __init__(self) -> None:
        super().__init__(Path())

    def check_free(self) -> None:
        pass

    def open(self, config: Config, progress: Progress, fresh: bool) -> str:
        return ""

    def take_over(self, config: Config, progress: Progress) -> str:
        return ""

    def append_event(self, event: Event) -> None:
        pass

    def newest(self) -> Path | None:
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        pass
