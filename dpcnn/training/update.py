"""The update of a rank's shard of the parameters, from its shard of the summed gradient."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.config import Config
from dpcnn.nn.network import Network
from dpcnn.optim.averaging import update_average
from dpcnn.optim.clipping import clip_coefficient

Vector = NDArray[Any]


class Update:
    """Optimizer, clipping, running means and average of the weights, for the elements ``shard`` of the vector.

    Attributes:
        state: by name, the vectors that are remembered from step to step: of ``shard``, to be saved and restored.
    """

    def __init__(self, config: Config, network: Network, params: Vector, shard: slice) -> None:
        self.config = config
        self._optimizer = config.make_optimizer()
        self.state = self._optimizer.zeros(len(params))
        if config.ema_decay:
            self.state["ema"] = params.copy()
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
        self, params: Vector, gradient: Vector, step: int, rate: float, norm: float, count: int, means: list[Vector]
    ) -> None:
        """Update the parameters in place.

        Args:
            gradient: summed over ``count`` samples.
            step: its number, from 1.
            rate: the learning rate.
            norm: of the summed gradient, all ranks' elements; for clipping.
            means: from :meth:`take_running_means`.
        """
        scale = clip_coefficient(norm / count, self.config.max_grad_norm) / count
        self._optimizer.update(params, gradient, self.state, step, rate, scale)
        for (place, _), mean in zip(self._running, means, strict=True):
            params[place] = mean
        if self.config.ema_decay:
            update_average(self.state["ema"], params, step, self.config.ema_decay)
