"""A network: layers in a row, over one flat vector of parameters with named views."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.machine import memory_left
from dpcnn.base.rng import WEIGHTS, SampleRng, generator
from dpcnn.base.timing import Timer
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn.initialisers import INITS
from dpcnn.nn.layer import Layer
from dpcnn.nn.losses import softmax_cross_entropy

Vector = NDArray[np.float32]

UFUNC_BUFFER = 512
"""Elements that NumPy works on at a time where an array is not contiguous.

Rows that are shorter, it copies before and after, which takes three times as long. Its default is 8192;
the pixels of a batch have fewer.
"""


MOST_PARAMETERS, MOST_ACTIVATIONS = 1 << 28, 1 << 26
"""Of a network, in elements: its parameters, and the outputs of all layers for an image.

So that a recipe or a checkpoint of a few bytes can't ask for any amount of memory.
"""


class Network:
    """Layers connected to an input shape, and the layout of their parameters in a flat vector.

    The vector holds every parameter in the order in which the layers declare them. The network
    itself holds none: each call is given a vector, so a gradient is computed into any memory.

    Attributes:
        size: elements of a parameter or gradient vector.
        running_stats: start, stop and rate of the elements that are running means: see :class:`Parameter`.
        shapes: of each layer's output, without N.
        activations: elements of all layers' outputs for an image.
        timer: where the time of :meth:`gradient` goes.
        parameters: every parameter under its full name, such as ``conv2d1.w``, in order.

    Raises:
        ConfigError: the images are too small for the layers, these don't fit each other, or there is too much of them.
    """

    def __init__(self, input_shape: Shape, layers: Sequence[Layer]) -> None:
        self.input_shape, self.layers, self.names = input_shape, list(layers), unique_names(layers)
        shape, self.activations = input_shape, 0
        self.shapes: list[Shape] = []
        for number, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            layer.number = number
            try:
                shape = layer.build(shape)
            except ValueError:
                why = "it expects images" if len(shape) == 1 else "pixels need a flatten before a linear layer"
                raise ConfigError(f"{name} can't take {shape}: {why}") from None
            if min(shape) < 1:
                raise ConfigError(f"images of {input_shape} are too small for this model: {name} would give {shape}")
            self.activations += prod(shape)
            if self.activations > MOST_ACTIVATIONS:
                raise ConfigError(
                    f"the layers up to {name} would give {self.activations:,} numbers for each image; "
                    f"at most {MOST_ACTIVATIONS:,} are supported"
                )
            self.shapes.append(shape)
        self.classes = prod(shape)
        if len(shape) > 1 or not any(layer.parameters for layer in self.layers):
            raise ConfigError(f"the model ends in {shape}: its last layer must be a linear one")
        self.first = next(i for i, layer in enumerate(self.layers) if layer.parameters)
        self.layers[self.first].needs_input_grad = False
        self.parameters = [
            replace(p, name=f"{name}.{p.name}")
            for name, layer in zip(self.names, self.layers, strict=True)
            for p in layer.parameters
        ]
        self.size = sum(prod(p.shape) for p in self.parameters)
        if self.size > MOST_PARAMETERS:
            raise ConfigError(f"{self.size:,} parameters; at most {MOST_PARAMETERS:,} are supported")
        ends = list(accumulate(prod(p.shape) for p in self.parameters))
        self.running_stats = [
            (end - prod(p.shape), end, p.momentum) for p, end in zip(self.parameters, ends, strict=True) if p.momentum
        ]
        self.timer = Timer()

    def initialise(self, seed: int, init: str = "he", std: float = 0.01) -> Vector:
        """First values, by one of :data:`INITS` where there is a fan-in; biases are zero."""
        params = np.empty(self.size, np.float32)
        for number, (parameter, view) in enumerate(zip(self.parameters, self.views(params).values(), strict=True)):
            view[...] = parameter.initial_value
            if parameter.fan_in:
                view[...] = INITS[init](generator(seed, WEIGHTS, number), parameter, std)
        return params

    @property
    def flops(self) -> int:
        """Floating-point operations of an image's gradient, convolutions by their definition.

        A multiplication and an addition for each weight at each place: forward, for the weights'
        gradient, and for that of the input, which the first layer does not need.
        """
        ways = [2 if index == self.first else 3 for index in range(len(self.layers))]
        return sum(2 * way * layer.multiplications for way, layer in zip(ways, self.layers, strict=True))

    def check_memory(self, images: int, processes: int = 1) -> None:
        """Make sure that so many images at once fit into this machine's memory, on so many processes of it.

        Raises:
            ConfigError: they don't, by an estimate from the layers' outputs, gradients and scratch space.
        """
        scratch = sum(layer.scratch for layer in self.layers)
        needed = 4 * processes * (images * (3 * self.activations + scratch) + 2 * self.size) + 32 * self.size
        left = memory_left()
        if needed > left:
            raise ConfigError(
                f"the network needs about {needed / 1e9:.1f} GB for {images} images at once on each of {processes} "
                f"processes, but only {left / 1e9:.1f} GB are left here; take fewer images or processes, or more memory"
            )

    def views(self, params: Array) -> dict[str, Array]:
        """The parameters of a flat vector by full name: views, not copies."""
        views, start = {}, 0
        for parameter in self.parameters:
            stop = start + prod(parameter.shape)
            views[parameter.name] = params[start:stop].reshape(parameter.shape)
            start = stop
        return views

    def flat(self, parameters: Mapping[str, Array]) -> Vector:
        """The flat vector of named parameters.

        Raises:
            CheckpointError: their names or shapes are not this network's.
        """
        self.check(parameters)
        params = np.empty(self.size, np.float32)
        for name, view in self.views(params).items():
            view[...] = parameters[name]
        return params

    def check(self, parameters: Mapping[str, Array]) -> None:
        """Hold named parameters against those of this network.

        Raises:
            CheckpointError: their names or shapes are others.
        """
        expected = {parameter.name: parameter.shape for parameter in self.parameters}
        found = {name: array.shape for name, array in parameters.items()}
        if found != expected:
            odd = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
            raise CheckpointError(
                f"the checkpoint is of another model: {odd} is {found.get(odd, 'absent')} there and "
                f"{expected.get(odd, 'absent')} here; use the model that it was made with"
            )

    def _pixels(self, images: Array, dtype: np.dtype[Any]) -> Array:
        """Images (N, H, W, C) as the first layer takes them: (H, W, N, C), floats unless it takes any number."""
        x = images.transpose(1, 2, 0, 3)
        return x if self.layers[0].takes_integers else np.array(x, dtype, order="C")

    def _named(self, params: Array) -> list[dict[str, Array]]:
        """For each layer, its own parameters by their short names."""
        views = iter(self.views(params).values())
        return [{p.name: next(views) for p in layer.parameters} for layer in self.layers]

    def logits(self, params: Array, images: Array) -> Array:
        """The last layer's output, (N, classes), for images (N, *input_shape); valid until the next call."""
        with ufunc_buffer(UFUNC_BUFFER):
            x = self._pixels(images, params.dtype)
            for layer, weights in zip(self.layers, self._named(params), strict=True):
                x, _ = layer.forward(x, weights)
            return x

    def gradient(
        self, params: Array, images: Array, labels: Array, smoothing: float, out: Array, rng: SampleRng | None = None
    ) -> tuple[float, int]:
        """The gradient of the summed loss of a microbatch.

        Args:
            params: (size,) parameters.
            images: (N, *input_shape).
            labels: (N,) integers.
            smoothing: of the targets, see :func:`dpcnn.nn.losses.softmax_cross_entropy`.
            out: (size,) written over with the gradient of the sum of the N losses.
            rng: where layers take what is random; None: nothing is.

        Returns:
            The sum of the losses, and the number of images classified right.
        """
        with ufunc_buffer(UFUNC_BUFFER):
            with self.timer("forward"):
                x, backwards = self._pixels(images, params.dtype), []
                for layer, weights in zip(self.layers, self._named(params), strict=True):
                    x, backward = layer.forward(x, weights, rng)
                    backwards.append(backward)
                losses, dy = softmax_cross_entropy(x, labels, smoothing)
                correct = int((x.argmax(axis=1) == labels).sum())
            with self.timer("backward"):
                gradients = self._named(out)
                for index in range(len(backwards) - 1, self.first, -1):
                    dx = backwards[index](dy, gradients[index])
                    assert dx is not None, "only the first layer with weights has no dx"
                    dy = dx
                backwards[self.first](dy, gradients[self.first])
            return float(losses.sum(dtype=np.float64)), correct

    def outputs(self, params: Array, images: Array) -> Iterator[tuple[str, dict[str, Array], Array]]:
        """Each layer's name, weights and output for images (N, *input_shape), in order; see :mod:`dpcnn.nn.layer`.

        An output is valid until the next one is asked for.
        """
        x = self._pixels(images, params.dtype)
        for name, layer, weights in zip(self.names, self.layers, self._named(params), strict=True):
            x, _ = layer.forward(x, weights)
            yield name, weights, x

    def first_not_finite(self, params: Array, images: Array) -> str | None:
        """The first layer, in order, whose weights or output for ``images`` are not all finite."""
        for name, weights, output in self.outputs(params, images):
            for kind, values in [*weights.items(), ("output", output)]:
                if not np.isfinite(values).all():
                    return f"{name} ({'its output' if kind == 'output' else f'its parameter {kind}'})"
        return None


@contextmanager
def ufunc_buffer(size: int) -> Iterator[None]:
    """Another size of NumPy's buffer for a while."""
    before = np.setbufsize(size)
    try:
        yield
    finally:
        np.setbufsize(before)


def unique_names(layers: Sequence[Layer]) -> list[str]:
    """The layers' kinds, each numbered from 1: conv2d1, maxpool2d1, relu1, conv2d2, ..."""
    seen: Counter[str] = Counter()
    names = []
    for layer in layers:
        kind = type(layer).__name__.lower()
        seen[kind] += 1
        names.append(f"{kind}{seen[kind]}")
    return names
