"""The speed of a peer's training."""

import ctypes
import time
from collections.abc import Callable
from math import isfinite
from typing import Any, Protocol

from dpcnn.config import Config
from dpcnn.errors import DivergenceError
from dpcnn.evidence.measure import WARM_UP
from dpcnn.training.plan import Plan

M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1  # of malloc.h


def keep_memory() -> None:
    """Let malloc keep the memory of freed arrays for new ones, as dpcnn's own arrays do.

    By default, glibc returns large arrays to the system, and the page faults of the new ones take up to a fifth of a
    step in PyTorch and JAX. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


class Training(Protocol):
    """The training of a process. Steps are counted from 0."""

    config: Config
    plan: Plan

    def batch(self, number: int) -> Any:
        """This process's part of the batch of a step."""

    def step(self, number: int, batch: Any) -> Any:
        """Take a step, and return the mean loss of the batch before it."""


def measure(training: Training, steps: int, wait: Callable[[], Any]) -> tuple[float, list[Any]]:
    """Time some steps after the warm-up. ``wait`` returns when all steps so far are complete.

    Libraries compile or plan a step for each size of the batch, and the last batch of an epoch is smaller: so a batch
    of each size is trained before the clock starts.

    Returns:
        Images per second, and the loss of each step of the warm-up.

    Raises:
        DivergenceError: a loss is not finite.
    """
    made = map(training.batch, range(WARM_UP + steps))
    batches = made if training.config.augments else iter(list(made))
    losses = [training.step(number, next(batches)) for number in range(WARM_UP)]
    sizes = {number: training.plan.images(number + 1, number) for number in range(WARM_UP, WARM_UP + steps)}
    for number in {size: number for number, size in sizes.items()}.values():  # one of each size
        training.step(number, training.batch(number))
    wait()
    started = time.perf_counter()
    for number, batch in enumerate(batches, WARM_UP):
        last = training.step(number, batch)
    wait()
    seconds = time.perf_counter() - started
    if not all(map(isfinite, map(float, [*losses, last]))):
        raise DivergenceError("the loss is not finite; try a smaller --lr")
    return sum(sizes.values()) / seconds, losses
