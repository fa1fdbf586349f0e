"""The update of a rank's shard of the parameters, from its shard of the summed gradient."""

from collections.abc import Mapping, Sequence

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.config import Config
from dpcnn.errors import DivergenceError
from dpcnn.nn.network import Network
from dpcnn.optim.averaging import update_average
from dpcnn.optim.clipping import clip_coefficient
from dpcnn.optim.groups import parameter_groups
from dpcnn.optim.layerwise import Layerwise
from dpcnn.parallel.comm import SerialComm
from dpcnn.training.norms import Norms

Parts = Mapping[str, Vector]


class Update:
    """Optimizer, clipping, running means and average of the weights, for the elements ``shard`` of the vector.

    It keeps nothing from step to step: it reads the vectors of the state before a step, and writes those after it.
    """

    def __init__(self, comm: SerialComm, config: Config, network: Network, shard: slice, unique: slice) -> None:
        """``unique``: the elements of the shard that are this rank's alone, counted from its start."""
        self.config, self._unique, self._timer = config, unique, network.timer
        optimizer = config.make_optimizer()
        self._names = ("parameters", *optimizer.state_names)
        groups = parameter_groups(network, optimizer)
        learning = [group for group in groups if not group.frozen]
        self._groups = [(group, within(shard, group.start, group.stop)) for group in learning]
        self._frozen = [within(shard, group.start, group.stop) for group in groups if group.frozen]
        self._running = [(within(shard, start, stop), rate) for start, stop, rate in network.running_stats]
        held = slice(shard.start + unique.start, shard.start + unique.stop)
        intervals = [(group.start, group.stop) for group in learning]
        self._norm = Norms(comm, [(0, network.size)], held) if config.max_grad_norm else None
        self._norms = Norms(comm, intervals, held) if isinstance(optimizer, Layerwise) else None

    def take_running_means(self, params: Vector, gradient: Vector, count: int) -> list[Vector]:
        """What the running means will be; their elements of the gradient, sums over ``count`` samples, become 0."""
        found = []
        for place, rate in self._running:
            now = params[place]
            found.append(now + np.float32(rate) * (gradient[place] / np.float32(count) - now))
            gradient[place] = 0
        return found

    def __call__(
        self, now: Parts, next: Parts, gradient: Vector, step: int, rate: float, count: int, means: list[Vector]
    ) -> None:
        """Write the vectors after a step.

        Args:
            now: by name, the parameters and the other vectors of ``shard`` before the step; they stay as they are.
            next: the same after the step, written here.
            gradient: summed over ``count`` samples; it may be written over.
            step: its number, from 1.
            rate: the learning rate.
            means: from :meth:`take_running_means`.

        Raises:
            DivergenceError: on every rank, where a norm of the optimizer's is not finite.
        """
        scale = self._clip_coefficient(gradient, count) / count
        before, params = [now[name] for name in self._names], next["parameters"]
        rates = [rate * group.lr for group, _ in self._groups]
        if self._norms:
            ratios = self._direct(self._norms, before, next, gradient, step, scale)
            rates, before, scale = [one * ratio for one, ratio in zip(rates, ratios, strict=True)], [], 1.0
        for (group, place), own in zip(self._groups, rates, strict=True):
            arrays = self._part(next, place), step, own, scale, [array[place] for array in before]
            group.optimizer.update(params[place], gradient[place], *arrays)
        for place in self._frozen:
            for name in self._names:
                next[name][place] = now[name][place]
        for (place, _), mean in zip(self._running, means, strict=True):
            params[place] = mean
        if self.config.ema_decay:
            next["ema"][...] = now["ema"]
            update_average(next["ema"], params, step, self.config.ema_decay)

    def _clip_coefficient(self, gradient: Vector, count: int) -> float:
        """The factor that clips the mean gradient of ``count`` samples."""
        if self._norm is None:
            return 1.0
        with self._timer("waiting"):
            norm = self._norm(gradient[self._unique]).item()
        return clip_coefficient(norm / count, self.config.max_grad_norm)

    def _direct(
        self, norms: Norms, before: Sequence[Vector], next: Parts, gradient: Vector, step: int, scale: float
    ) -> list[float]:
        """The first pass of a :class:`Layerwise` optimizer: the factor of the learning rate of each group."""
        params = next["parameters"]
        for group, place in self._groups:
            if isinstance(group.optimizer, Layerwise):
                own = [array[place] for array in before]
                group.optimizer.direct(params[place], gradient[place], self._part(next, place), step, scale, own)
        with self._timer("waiting"):
            pairs = norms(params[self._unique], gradient[self._unique]).T  # (groups, 2)
        if not np.isfinite(pairs).all():
            raise DivergenceError(
                f"step {step}: the norm of some weights or of their direction is not finite; the last checkpoint stays "
                f"as it was; try a smaller --lr than {self.config.lr:g}"
            )
        return [group.ratio(*pair) for (group, _), pair in zip(self._groups, pairs.tolist(), strict=True)]

    def _part(self, vectors: Parts, place: slice) -> dict[str, Vector]:
        return {name: vectors[name][place] for name in self._names}


def within(shard: slice, start: int, stop: int) -> slice:
    """The elements ``start`` to ``stop`` of the whole vector that lie in a shard, counted from its start."""
    first, last = max(start, shard.start), min(stop, shard.stop)
    return slice(first - shard.start, max(first, last) - shard.start)
