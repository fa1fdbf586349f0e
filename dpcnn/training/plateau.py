"""The schedule ``plateau``: the learning rate falls when validation does not become better."""

from dpcnn.config import Config
from dpcnn.optim.schedules import PLATEAU
from dpcnn.runs.progress import Progress, merits


def plateaus(progress: Progress, config: Config) -> int:
    """How often the learning rate has fallen after the epochs so far; 0 with another schedule.

    It falls after more than ``plateau_patience`` epochs in a row that are not better than the best before them, like
    PyTorch's ``ReduceLROnPlateau``. This is a function of the record, which all ranks share and checkpoints contain.
    """
    if config.schedule != PLATEAU:
        return 0
    monitor, best, waited, fallen = config.monitored, None, 0, 0
    for event in progress.epoch_events:
        if f"validation_{monitor}" not in event:
            continue
        now = merits(event, monitor)
        if best is None or now > best:
            best, waited = now, 0
        else:
            waited += 1
        if waited > config.plateau_patience:
            waited, fallen = 0, fallen + 1
    return fallen
