"""The parameters of layers in one flat vector, with named views."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.base.rng import WEIGHTS, generator
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn.initialisers import INITS
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Linear, WeightProduct

MOST_PARAMETERS = 1 << 28
"""The largest number of parameters. It limits the memory that a recipe or a checkpoint of a few bytes can request."""


class FlatParameters:
    """The layout of the parameters in a flat vector, in the order in which the layers declare them.

    Attributes:
        parameters: every parameter under its full name, such as ``conv2d1.w``, in order.
        owners: of each parameter, the layer that it belongs to.
        intervals: of each parameter, start and stop of its elements.
        size: elements of a parameter or gradient vector.
        running_stats: start, stop and momentum of the elements that are running means and not frozen: see
            :class:`dpcnn.nn.layer.Parameter`.
        frozen: start and stop of the elements that a training leaves as they are.
        products: by the number of the layer, the gradients that are a product of two factors; not of frozen layers.

    Raises:
        ConfigError: there are too many parameters.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[Layer]) -> None:
        """``names``: of the layers."""
        self.owners = [layer for layer in layers for _ in layer.parameters]
        self.parameters = [
            p._replace(name=f"{name}.{p.name}")
            for name, layer in zip(names, layers, strict=True)
            for p in layer.parameters
        ]
        bounds = list(accumulate((prod(p.shape) for p in self.parameters), initial=0))
        self.intervals, self.size = list(pairwise(bounds)), bounds[-1]
        if self.size > MOST_PARAMETERS:
            raise ConfigError(f"{self.size:,} parameters; at most {MOST_PARAMETERS:,} are supported")
        placed = list(zip(self.parameters, self.owners, self.intervals, strict=True))
        self.running_stats = [(*place, p.momentum) for p, layer, place in placed if p.momentum and not layer.frozen]
        self.frozen = [place for _, layer, place in placed if layer.frozen]
        self.products = {
            layer.number: WeightProduct(start, p.shape[0], p.shape[1])
            for p, layer, (start, _) in placed
            if type(layer) is Linear and len(p.shape) == 2 and not layer.frozen
        }

    @property
    def counted(self) -> str:
        """The number of learned parameters, and that of running means if there are any, as text."""
        learned = sum(prod(parameter.shape) for parameter in self.parameters if not parameter.momentum)
        means = f" and {self.size - learned:,} running means and variances" if learned < self.size else ""
        return f"{learned:,} parameters{means}"

    def initialise(self, seed: int, init: str = "he", std: float = 0.01, out: Vector | None = None) -> Vector:
        """Initial values, drawn by one of :data:`INITS` for parameters with a fan-in; biases are zero.

        Args:
            out: is filled and returned if given, (size,).
        """
        params = np.empty(self.size, np.float32) if out is None else out
        for number, (parameter, view) in enumerate(zip(self.parameters, self.views(params).values(), strict=True)):
            if parameter.fan_in:
                INITS[init](generator(seed, WEIGHTS, number), parameter, std, view)
            else:
                view[...] = parameter.initial_value
        return params

    def views(self, params: Array) -> dict[str, Array]:
        """The parameters of a flat vector by full name: views, not copies."""
        return {
            parameter.name: params[start:stop].reshape(parameter.shape)
            for parameter, (start, stop) in zip(self.parameters, self.intervals, strict=True)
        }

    def flat(self, parameters: Mapping[str, Array]) -> Vector:
        """Return the flat vector of named parameters.

        Raises:
            CheckpointError: their names or shapes are not this network's.
        """
        self.check(parameters)
        params = np.empty(self.size, np.float32)
        for name, view in self.views(params).items():
            view[...] = parameters[name]
        return params

    def check(self, parameters: Mapping[str, Array]) -> None:
        """Check the names and shapes of parameters against those of this network.

        Raises:
            CheckpointError: their names or shapes differ.
        """
        expected = {parameter.name: parameter.shape for parameter in self.parameters}
        given = {name: array.shape for name, array in parameters.items()}
        if given != expected:
            name = next(name for name in [*expected, *given] if given.get(name) != expected.get(name))
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {given.get(name, 'absent')} in the checkpoint and "
                f"{expected.get(name, 'absent')} in the model; use the model of the checkpoint's run"
            )
