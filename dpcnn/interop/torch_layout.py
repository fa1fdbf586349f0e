"""PyTorch's names and layout of the parameters, for images (N, C, H, W). This module does not need PyTorch.

=============  ===================  ========================================================
dpcnn          PyTorch              layout
=============  ===================  ========================================================
conv2d1.w      conv2d1.weight       (KH, KW, C, F) becomes (F, C, KH, KW)
linear1.w      linear1.weight       (C, F) becomes (F, C); after a flatten layer, features in
                                    the order (H, W, C) become features in the order (C, H, W)
batchnorm1.w   batchnorm1.weight    (C,), the same
...b           ...bias              the same
...mean        ...running_mean      the same
...variance    ...running_var       the same
=============  ===================  ========================================================
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.errors import ConfigError
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer, Parameter
from dpcnn.nn.layers import Conv2d, Flatten, Linear
from dpcnn.nn.merging import Concat
from dpcnn.nn.network import Network

THEIR_NAMES = {"w": "weight", "b": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclass(frozen=True)
class Twin:
    """A parameter in dpcnn (ours) and in PyTorch (theirs).

    Attributes:
        ours, theirs: its full names in dpcnn and in PyTorch.
        shape, their_shape: the shapes of its array.
        kernel_shape: its shape as the kernel of a convolution, (KH, KW, C, F); None: the arrays are the same.
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


def torch_names(network: Network) -> list[Twin]:
    """Every parameter of a network, in order.

    Raises:
        ConfigError: a layer merges flattened images, which PyTorch orders in another way.
    """
    twins: list[Twin] = []
    pixels: list[Shape] = []  # for each layer, the shape (H, W, C) of the flattened images in its output, or ()
    for number, (name, layer) in enumerate(zip(network.names, network.layers, strict=True)):
        flattened = {pixels[source] for source in network.sources[number] if source != IMAGES} - {()}
        if len(flattened) > 1 or (flattened and isinstance(layer, Concat)):
            raise ConfigError(f"no PyTorch layout for {name} behind a flatten layer; use --format npz")
        before = next(iter(flattened), ())
        twins += [_twin(name, layer, parameter, before) for parameter in layer.parameters]
        pixels.append(network.input_shapes(number)[0] if isinstance(layer, Flatten) else before)
        if isinstance(layer, Linear):
            pixels[-1] = ()
    return twins


def _twin(name: str, layer: Layer, parameter: Parameter, pixels: Shape) -> Twin:
    if parameter.name not in THEIR_NAMES:
        raise ConfigError(
            f"no PyTorch name for the parameter {name}.{parameter.name}: use --format npz, or add an entry to "
            "dpcnn.interop.torch_layout.THEIR_NAMES"
        )
    ours, theirs = f"{name}.{parameter.name}", f"{name}.{THEIR_NAMES[parameter.name]}"
    if len(parameter.shape) > 1:
        if type(layer) not in LAYOUTS:
            kind = type(layer).__name__
            raise ConfigError(
                f"no PyTorch layout for {ours}: use --format npz, or add an entry to "
                f"dpcnn.interop.torch_layout.LAYOUTS[{kind}]"
            )
        kernel_shape, their_shape = LAYOUTS[type(layer)](parameter.shape, pixels)
        return Twin(ours, theirs, parameter.shape, their_shape, kernel_shape)
    return Twin(ours, theirs, parameter.shape, parameter.shape, None)
