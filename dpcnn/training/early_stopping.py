"""Early stopping: a run ends when its validation has not become better for some epochs."""

from dpcnn.config import Config
from dpcnn.runs.progress import Cursor


def out_of_patience(cursor: Cursor, config: Config) -> str:
    """Why the run ends before its last epoch, as a line for people; empty: it goes on."""
    best = cursor.best(config.monitor)
    if not config.patience or best is None or cursor.epochs - best["epoch"] < config.patience:
        return ""
    return (
        f"stopped early, after epoch {cursor.epochs} of {config.epochs}: no better validation {config.monitor} in "
        f"{config.patience} epochs; the best is that of epoch {best['epoch']}"
    )
