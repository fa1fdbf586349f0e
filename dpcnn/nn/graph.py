"""The connections of a network's layers: each layer names the earlier layers whose outputs it takes."""

import re
from collections import Counter
from collections.abc import Sequence

from dpcnn.errors import ConfigError
from dpcnn.nn.activations import ReLU
from dpcnn.nn.layer import Layer
from dpcnn.nn.merging import Merge
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import MaxPool2d

IMAGES = -1
"""The number of the network's input, among the numbers of layers."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def unique_names(layers: Sequence[Layer]) -> list[str]:
    """The names of the layers: their own, or their kinds, each numbered from 1: conv2d1, relu1, conv2d2, ...

    Raises:
        ConfigError: two layers have one name.
    """
    seen: Counter[str] = Counter()
    names = []
    for layer in layers:
        kind = type(layer).__name__.lower()
        seen[kind] += 1
        names.append(layer.name or f"{kind}{seen[kind]}")
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{count} layers have the name {name}; give them other names")
    return names


def connections(layers: Sequence[Layer], names: Sequence[str]) -> list[tuple[int, ...]]:
    """For each layer, the numbers of the layers whose outputs are its inputs; :data:`IMAGES` for the first.

    Raises:
        ConfigError: a layer names no layer before it, has too many inputs or too few, or its output is used nowhere.
    """
    numbers = {name: number for number, name in enumerate(names)}
    sources: list[tuple[int, ...]] = []
    for number, layer in enumerate(layers):
        first = _before(number, layer.input, names, numbers) if layer.input else number - 1
        inputs = [first, *[_before(number, name, names, numbers) for name in layer.others]]
        if isinstance(layer, Merge) != (len(inputs) > 1):
            why = "needs with = [...], its other inputs" if isinstance(layer, Merge) else "takes one input, and no with"
            raise ConfigError(f"{names[number]} {why}")
        sources.append(tuple(inputs))
    used = {source for inputs in sources for source in inputs}
    for number in range(len(layers) - 1):
        if number not in used:
            raise ConfigError(f"no layer uses the output of {names[number]}; name it in input or with, or delete it")
    return sources


def last_uses(sources: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each layer, the numbers of those of its inputs that no later layer takes."""
    last = {source: number for number, inputs in enumerate(sources) for source in inputs}
    return [[source for source in set(inputs) if last[source] == number] for number, inputs in enumerate(sources)]


def _before(number: int, name: str, names: Sequence[str], numbers: dict[str, int]) -> int:
    source = numbers.get(name, number)
    if source >= number:
        raise ConfigError(f"{names[number]}: there is no layer {name!r} before it")
    return source


def learning(layers: Sequence[Layer], sources: Sequence[tuple[int, ...]]) -> list[bool]:
    """For each layer, whether it or any layer in front of it has parameters that are not frozen, so that its output
    needs a gradient."""
    needed: list[bool] = []
    for layer, inputs in zip(layers, sources, strict=True):
        learns = bool(layer.parameters) and not layer.frozen
        needed.append(learns or any(needed[source] for source in inputs if source != IMAGES))
    return needed


def pooled_first(layers: Sequence[Layer], sources: Sequence[tuple[int, ...]]) -> list[Layer]:
    """The layers as training computes them: a ReLU, and a pooling that is the only layer after it, change places.

    The largest of some values is positive if any of them is, so both orders give the same output and the same gradient,
    and the ReLU then has fewer elements.
    """
    users, found = Counter(source for inputs in sources for source in inputs), list(layers)
    for number, (first, *_) in enumerate(sources):
        if first != IMAGES and users[first] == 1 and type(found[first]) is ReLU and shrinks(found[number]):
            found[first], found[number] = found[number], found[first]
    return found


def applied(layers: Sequence[Layer], sources: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """The layers that a batch normalisation applies in training: the number of each such ReLU or pooling, with the
    number of its batch normalisation. It must be the only layer that takes the output of the normalisation. A frozen
    normalisation computes as in evaluation, and applies none."""
    users = Counter(source for inputs in sources for source in inputs)
    normalisations = {
        number
        for number, layer in enumerate(layers)
        if type(layer) is BatchNorm and not layer.frozen and users[number] == 1
    }
    return {
        number: first
        for number, (first, *_) in enumerate(sources)
        if first in normalisations and (type(layers[number]) is ReLU or shrinks(layers[number]))
    }


def shrinks(layer: Layer) -> bool:
    """Whether a layer is a maximum pooling with a stride above 1. Here and above, only the exact classes count: a
    derived class may compute something else."""
    return type(layer) is MaxPool2d and layer.stride > 1
