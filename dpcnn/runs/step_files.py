"""The names of a run's checkpoints, and the checkpoints that a run keeps."""

import re

from dpcnn.base.files import Folder

LAST, BEST = "last.h5", "best.h5"
STEP = re.compile(r"step-(\d{8,16})\.h5")


def step_name(step: int) -> str:
    """The file name of a step's checkpoint."""
    return f"step-{step:08d}.h5"


def steps(folder: Folder) -> list[str]:
    """The names of a folder's checkpoints ``step-NUMBER.h5``, in the order of their steps."""
    numbered = [(int(match[1]), match[0]) for file in folder.names() if (match := STEP.fullmatch(file))]
    return [file for _, file in sorted(numbered)]


def prune(folder: Folder, keep: int, best: str | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best."""
    for file in steps(folder)[:-keep]:
        if file != best:
            folder.remove(file)
