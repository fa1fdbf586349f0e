"""Parameter groups: parameters next to each other in the flat vector that are updated in the same way."""

from dataclasses import replace
from typing import Any, NamedTuple

from dpcnn.errors import ConfigError
from dpcnn.nn.network import Network
from dpcnn.optim.layerwise import Layerwise
from dpcnn.optim.optimizer import Optimizer


class Group(NamedTuple):
    """Elements of the flat vector, and how they are updated.

    Attributes:
        start, stop: of the elements.
        optimizer: with the weight decay of the group.
        lr: the factor of the learning rate.
        frozen: the parameters stay as they are.
        adapted: the group is one array of weights, and its norms are a factor of the learning rate: see
            :class:`Layerwise`.
    """

    start: int
    stop: int
    optimizer: Optimizer
    lr: float
    frozen: bool
    adapted: bool

    def ratio(self, weights: float, direction: float) -> float:
        """The factor of the learning rate by the norms of the group and of its direction: see :class:`Layerwise`."""
        if self.adapted and isinstance(self.optimizer, Layerwise):
            return self.optimizer.ratio(weights, direction)
        return 1.0

    def alike(self, other: "Group") -> bool:
        """Whether the two can be one group, where one follows the other."""
        mine, its = ((g.optimizer, g.lr, g.frozen) for g in (self, other))
        return mine == its and not self.adapted and not other.adapted


def parameter_groups(network: Network, optimizer: Optimizer) -> list[Group]:
    """The groups of a network's parameters, in order; together they are the whole vector.

    Weights decay. Parameters without a fan-in do not: biases, and the parameters of a normalisation.
    """
    groups: list[Group] = []
    for parameter, layer, (start, stop) in zip(network.parameters, network.owners, network.intervals, strict=True):
        weights = parameter.fan_in > 0
        own = with_decay(optimizer, layer.weight_decay if weights else 0.0)
        adapted = weights and isinstance(optimizer, Layerwise) and not layer.frozen
        group = Group(start, stop, own, layer.lr, layer.frozen, adapted)
        if groups and groups[-1].alike(group):
            groups[-1] = groups[-1]._replace(stop=stop)
        else:
            groups.append(group)
    return groups


def with_decay(optimizer: Optimizer, decay: float | None) -> Optimizer:
    """The optimizer with another weight decay, if it has one; None: its own."""
    if decay is None or not hasattr(optimizer, "weight_decay"):
        return optimizer
    kind: Any = optimizer
    changed: Optimizer = replace(kind, weight_decay=decay)
    return changed


def check_settings(network: Network, optimizer: Optimizer) -> None:
    """Check that each setting of a layer has an effect.

    Raises:
        ConfigError: the layer has no parameters, or none that decay, or the optimizer has no weight decay.
    """
    for name, layer in zip(network.names, network.layers, strict=True):
        if not layer.parameters and (layer.frozen or layer.lr != 1):
            raise ConfigError(
                f"{name}: {'freeze' if layer.frozen else 'lr'}: the layer has no parameters; delete the key"
            )
        if layer.weight_decay and not any(parameter.fan_in for parameter in layer.parameters):
            raise ConfigError(f"{name}: weight_decay: the layer has no weights that decay; delete the key")
        if layer.weight_decay and not hasattr(optimizer, "weight_decay"):
            kind = type(optimizer).__name__.lower()
            raise ConfigError(f"{name}: weight_decay: the optimizer {kind} has none; delete the key, or choose adamw")
