"""Layers that take the outputs of several layers. Shapes: see layer.py."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Layer, Memory

Split = Callable[[Array], Sequence[Array]]


class Merge(Layer):
    """A layer of several inputs without parameters: the layer before it, or ``input``, and those named by ``with``."""

    def merged_shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of the output, without N, for the shapes of the inputs.

        Raises:
            ConfigError: the shapes do not fit each other.
        """
        raise NotImplementedError

    def merge(self, inputs: Sequence[Array]) -> tuple[Array, Split]:
        """The output for ``inputs``, and the function ``backward(dy) -> [dx, ...]``: a separate array per input."""
        raise NotImplementedError


class Add(Merge):
    """The sum of inputs of one shape: the shortcut of He et al., "Deep residual learning" (2016), eq. 1.

    It overwrites the first input.
    """

    overwrites_input = True

    def merged_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len(set(shapes)) > 1:
            raise ConfigError(f"its inputs must have one shape, not {', '.join(map(str, shapes))}")
        return shapes[0]

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(in_place=True, dx_in_place=True)

    def merge(self, inputs: Sequence[Array]) -> tuple[Array, Split]:
        y, *others = inputs
        for x in others:
            y += x

        count = len(others)

        def backward(dy: Array) -> list[Array]:
            copies = [empty(dy.shape, dy.dtype) for _ in range(count)]
            for copy in copies:
                np.copyto(copy, dy)
            return [dy, *copies]

        return y, backward


class Concat(Merge):
    """The channels of all inputs, one after the other: Huang et al., "Densely connected convolutional networks" (2017),
    eq. 2."""

    keeps_input = False

    def merged_shape(self, shapes: Sequence[Shape]) -> Shape:
        if len({shape[:-1] for shape in shapes}) > 1:
            raise ConfigError(f"its inputs must agree in height and width, not {', '.join(map(str, shapes))}")
        return *shapes[0][:-1], sum(shape[-1] for shape in shapes)

    def merge(self, inputs: Sequence[Array]) -> tuple[Array, Split]:
        ends = list(accumulate((x.shape[-1] for x in inputs), initial=0))
        y = empty((*inputs[0].shape[:-1], ends[-1]), inputs[0].dtype)
        np.concatenate(inputs, axis=-1, out=y)

        def backward(dy: Array) -> list[Array]:
            gradients = []
            for start, end in pairwise(ends):
                dx = empty((*dy.shape[:-1], end - start), dy.dtype)
                np.copyto(dx, dy[..., start:end])
                gradients.append(dx)
            return gradients

        return y, backward
