"""The update of a rank's shard of the parameters, from its shard of the summed gradient."""

from collections.abc import Mapping

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.config import Config
from dpcnn.nn.network import Network
from dpcnn.optim.averaging import update_average
from dpcnn.optim.clipping import clip_coefficient

Parts = Mapping[str, Vector]


class Update:
    """Optimizer, clipping, running means and average of the weights, for the elements ``shard`` of the vector.

    It keeps nothing from step to step: it reads the vectors of the state before a step, and writes those after it.
    """

    def __init__(self, config: Config, network: Network, shard: slice) -> None:
        self.config = config
        self._optimizer = config.make_optimizer()
        self._running = [
            (slice(lo - shard.start, hi - shard.start), rate)
            for start, stop, rate in network.running_stats
            if (lo := max(start, shard.start)) < (hi := min(stop, shard.stop))
        ]

    def take_running_means(self, params: Vector, gradient: Vector, count: int) -> list[Vector]:
        """What the running means will be; their elements of the gradient, sums over ``count`` samples, become 0."""
        found = []
        for place, rate in self._running:
            now = params[place]
            found.append(now + np.float32(rate) * (gradient[place] / np.float32(count) - now))
            gradient[place] = 0
        return found

    def __call__(
        self, now: Parts, next: Parts, gradient: Vector, step: int, rate: float, norm: float, count: int,
        means: list[Vector],
    ) -> None:  # fmt: skip
        """Write the vectors after a step.

        Args:
            now: by name, the parameters and the other vectors of ``shard`` before the step; they stay as they are.
            next: the same after the step, written here.
            gradient: summed over ``count`` samples.
            step: its number, from 1.
            rate: the learning rate.
            norm: of the summed gradient, all ranks' elements; for clipping.
            means: from :meth:`take_running_means`.
        """
        scale = clip_coefficient(norm / count, self.config.max_grad_norm) / count
        params, names = next["parameters"], self._optimizer.state_names
        before = [now["parameters"], *(now[name] for name in names)]
        self._optimizer.update(params, gradient, next, step, rate, scale, before)
        for (place, _), mean in zip(self._running, means, strict=True):
            params[place] = mean
        if self.config.ema_decay:
            next["ema"][...] = now["ema"]
            update_average(next["ema"], params, step, self.config.ema_decay)
