"""Early stopping: a run ends when its validation has not become better for some epochs."""

from dpcnn.config import Config
from dpcnn.runs.progress import Progress


def out_of_patience(progress: Progress, config: Config) -> str:
    """The reason why the run ends before its last epoch, as a line; empty if it continues."""
    best = progress.best(config.monitored)
    if not config.patience or best is None or progress.epochs - best["epoch"] < config.patience:
        return ""
    return (
        f"stopped early, after epoch {progress.epochs} of {config.epochs}: no better validation {config.monitored} in "
        f"{config.patience} epochs; the best is that of epoch {best['epoch']}"
    )
