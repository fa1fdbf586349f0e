"""PyTorch's names and layout of the parameters, for images (N, C, H, W). This module does not need PyTorch.

=============  ===================  ========================================================
dpcnn          PyTorch              layout
=============  ===================  ========================================================
conv2d1.w      conv2d1.weight       (KH, KW, C, F) becomes (F, C, KH, KW)
linear1.w      linear1.weight       (C, F) becomes (F, C); after a flatten layer, features in
                                    the order (H, W, C) become features in the order (C, H, W)
batchnorm1.w   batchnorm1.weight    (C,), the same; after a flatten layer, features in the order
                                    (C, H, W)
...b           ...bias              the same
...mean        ...running_mean      the same
...variance    ...running_var       the same
=============  ===================  ========================================================
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.errors import ConfigError
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer, Parameter
from dpcnn.nn.layers import Conv2d, Flatten, Linear
from dpcnn.nn.merging import Concat
from dpcnn.nn.network import Network
from dpcnn.nn.sample_norm import GroupNorm, LocalResponseNorm

THEIR_NAMES = {"w": "weight", "b": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclass(frozen=True)
class Twin:
    """A parameter in dpcnn (ours) and in PyTorch (theirs).

    Attributes:
        ours, theirs: its full names in dpcnn and in PyTorch.
        shape, their_shape: the shapes of its array.
        kernel_shape: its shape as the kernel of a convolution, (KH, KW, C, F), where F may be 1; None: the arrays are
            the same.
    """

    ours: str
    theirs: str
    shape: Shape
    their_shape: Shape
    kernel_shape: Shape | None

    def to_torch(self, array: Array) -> Array:
        """Convert an array of ``shape`` to PyTorch's layout, ``their_shape``."""
        if self.kernel_shape is None:
            return array
        return np.ascontiguousarray(array.reshape(self.kernel_shape).transpose(3, 2, 0, 1)).reshape(self.their_shape)

    def from_torch(self, array: Array) -> Array:
        """Convert an array of ``their_shape`` to dpcnn's layout, ``shape``."""
        if self.kernel_shape is None:
            return array
        KH, KW, C, F = self.kernel_shape
        return np.ascontiguousarray(array.reshape(F, C, KH, KW).transpose(2, 3, 1, 0)).reshape(self.shape)


def _of_conv2d(w: Shape, pixels: Shape) -> tuple[Shape, Shape]:
    KH, KW, C, F = w
    return w, (F, C, KH, KW)


def _of_linear(w: Shape, pixels: Shape) -> tuple[Shape, Shape]:
    C, F = w
    return (*(pixels or (1, 1, C)), F), (F, C)


LAYOUTS: dict[type[Layer], Callable[[Shape, Shape], tuple[Shape, Shape]]] = {Conv2d: _of_conv2d, Linear: _of_linear}
"""For each type of layer with a "w" of several axes, the function that gives ``kernel_shape`` and ``their_shape``.

Its arguments are the shape of our "w", and the shape (H, W, C) of the images before a preceding flatten layer, or ().
"""


BY_ORDER = Concat, GroupNorm, LocalResponseNorm
"""Layers whose result depends on the order of the features."""


def torch_names(network: Network) -> list[Twin]:
    """Every parameter of a network, in order.

    Raises:
        ConfigError: the result of a layer depends on the order of flattened images, which is different in PyTorch.
    """
    twins: list[Twin] = []
    pixels: list[Shape] = []  # for each layer, the shape (H, W, C) of the flattened images in its output, or ()
    for number, (name, layer) in enumerate(zip(network.names, network.layers, strict=True)):
        orders = {() if source == IMAGES else pixels[source] for source in network.sources[number]}
        if len(orders) > 1 or (orders != {()} and isinstance(layer, BY_ORDER)):
            raise ConfigError(f"no PyTorch layout for {name} behind a flatten layer; use --format npz")
        (before,) = orders
        twins += [_twin(name, layer, parameter, before) for parameter in layer.parameters]
        pixels.append(() if isinstance(layer, Linear) else before)
        if isinstance(layer, Flatten):
            H, W, C = network.input_shapes(number)[0]
            pixels[-1] = (H, W, C) if H * W > 1 and C > 1 else ()  # else both orders are the same
    return twins


def _twin(name: str, layer: Layer, parameter: Parameter, pixels: Shape) -> Twin:
    if parameter.name not in THEIR_NAMES:
        raise ConfigError(
            f"no PyTorch name for the parameter {name}.{parameter.name}: use --format npz, or add the entry "
            f"dpcnn.interop.torch_layout.THEIR_NAMES[{parameter.name!r}]"
        )
    ours, theirs = f"{name}.{parameter.name}", f"{name}.{THEIR_NAMES[parameter.name]}"
    if len(parameter.shape) > 1:
        if type(layer) not in LAYOUTS:
            kind = type(layer).__name__
            raise ConfigError(
                f"no PyTorch layout for {ours}: use --format npz, or add the entry "
                f"dpcnn.interop.torch_layout.LAYOUTS[{kind}]"
            )
        kernel_shape, their_shape = LAYOUTS[type(layer)](parameter.shape, pixels)
        return Twin(ours, theirs, parameter.shape, their_shape, kernel_shape)
    if pixels and type(layer) not in LAYOUTS and parameter.shape == (prod(pixels),):  # a number for each feature
        return Twin(ours, theirs, parameter.shape, parameter.shape, (*pixels, 1))
    return Twin(ours, theirs, parameter.shape, parameter.shape, None)
