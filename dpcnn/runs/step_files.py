"""The names of a run's checkpoints, and the checkpoints that a run keeps."""

import re
from collections.abc import Iterable

from dpcnn.base.files import Folder

LAST, BEST = "last.h5", "best.h5"
STEP = re.compile(r"step-(\d{8,16})\.h5")


def step_name(step: int) -> str:
    """The file name of a step's checkpoint."""
    return f"step-{step:08d}.h5"


def steps(names: Iterable[str]) -> list[str]:
    """Those of some names of files that are ``step-NUMBER.h5``, in the order of their steps."""
    numbered = [(int(match[1]), match[0]) for name in names if (match := STEP.fullmatch(name))]
    return [file for _, file in sorted(numbered)]


def prune(folder: Folder, keep: int, best: str | None) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best."""
    for file in steps(folder.names())[:-keep]:
        if file != best:
            folder.remove(file)
