"""The plan of a run: which samples a step takes, its learning rate, and when epochs and the run end."""

import math

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import elementary
from dpcnn.base.rng import permutation
from dpcnn.config import Config
from dpcnn.data.dataset import Samples
from dpcnn.data.holdout import hold_out
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.runs.progress import Progress
from dpcnn.training.plateau import plateaus


class Plan:
    """The plan of a run, a function of its configuration and its samples.

    Attributes:
        holdout: the training samples and the validation samples.
        training: the number of training samples.
        steps_per_epoch, last_step, last_epoch: counted from 1.
    """

    def __init__(self, config: Config, samples: Samples) -> None:
        self.config = config
        self.holdout = hold_out(
            samples.labels, config.validation, config.holdout, config.seed, samples.manifest.class_names
        )
        self.training = len(self.holdout.training)
        self.steps_per_epoch = math.ceil(self.training / config.batch)
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or 2**63)
        self.last_epoch = math.ceil(self.last_step / self.steps_per_epoch)
        self._order: tuple[int, NDArray[np.int64]] = -1, np.empty(0, np.int64)

    def batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The indices of the samples of a step in an epoch; both are counted from 0."""
        within = step % self.steps_per_epoch
        return self.order(epoch)[within * self.config.batch : (within + 1) * self.config.batch]

    def next_batch(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The indices of the samples of the step after this one; none after the run's last step."""
        if step + 1 >= self.last_step:
            return np.empty(0, np.int64)
        return self.batch(epoch + self.epoch_ends(epoch, step + 1), step + 1)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices of all training samples in the order of an epoch, counted from 0."""
        if self._order[0] != epoch:
            self._order = epoch, self.holdout.training[permutation(self.config.seed, epoch, self.training)]
        return self._order[1]

    def lr(self, step: int, progress: Progress) -> float:
        """The learning rate of a step, counted from 0; ``progress`` has the evaluations before it."""
        config = self.config
        factor = SCHEDULES[config.schedule](step / self.steps_per_epoch, config.epochs, config.gamma)
        factor *= elementary.whole_power(config.gamma, plateaus(progress, config))
        return config.lr * factor * min(1.0, (step + 1) / (config.warmup + 1))

    def evaluated(self, samples: Samples, test: Samples | None) -> dict[str, tuple[Samples, NDArray[np.int64]]]:
        """The samples that are evaluated after each epoch, by name, with their indices."""
        sets = {"validation": (samples, self.holdout.validation)}
        return sets | ({"test": (test, np.arange(len(test)))} if test else {})

    @property
    def warmup_remark(self) -> str:
        """A line for people if the warm-up takes more than half of the steps of all epochs; otherwise empty."""
        warmup, steps = self.config.warmup, self.config.epochs * self.steps_per_epoch
        if 2 * warmup <= steps:
            return ""
        return (
            f"warning: the learning rate rises during the first {warmup:,} steps (--warmup), but the run has {steps:,} "
            f"steps; give --epochs {math.ceil(2 * warmup / self.steps_per_epoch)} or more, or --warmup {steps // 5}"
        )

    def images(self, step: int, start: int = 0) -> int:
        """The number of images in the steps from ``start`` to ``step`` - 1, counted from 0."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.training + steps * self.config.batch - (self.images(start) if start else 0)

    def epoch(self, step: int) -> int:
        """The epoch of a step, both counted from 0, if nothing cuts an epoch short."""
        return step // self.steps_per_epoch

    def epoch_ends(self, epochs: int, step: int) -> bool:
        """Whether the epoch after ``epochs`` epochs ends after ``step`` steps, or the run does."""
        return step >= min((epochs + 1) * self.steps_per_epoch, self.last_step)
