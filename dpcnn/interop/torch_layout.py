"""Parameters as PyTorch names them and lays them out, for images (N, C, H, W); no PyTorch is needed.

=============  ===================  ========================================================
ours           theirs               laid out
=============  ===================  ========================================================
conv2d1.w      conv2d1.weight       (KH, KW, C, F) as (F, C, KH, KW)
linear1.w      linear1.weight       (C, F) as (F, C); behind flattened pixels, ours in the
                                    order (H, W, C), as theirs in the order (C, H, W)
batchnorm1.w   batchnorm1.weight    (C,)
...b           ...bias              as it is
...mean        ...running_mean      as it is
...variance    ...running_var       as it is
=============  ===================  ========================================================
"""

from dataclasses import dataclass

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.nn.layers import Conv2d, Flatten, Linear
from dpcnn.nn.network import Network

THEIR_NAMES = {"w": "weight", "b": "bias", "mean": "running_mean", "variance": "running_var"}


@dataclass(frozen=True)
class Twin:
    """A parameter here and there.

    Attributes:
        ours, theirs: its full names.
        shape, their_shape: of its array.
        window: its shape as a convolution's kernel, (KH, KW, C, F); None: the arrays are the same.
    """

    ours: str
    theirs: str
    shape: Shape
    their_shape: Shape
    window: Shape | None

    def to_torch(self, array: Array) -> Array:
        """Our array, laid out as theirs."""
        if self.window is None:
            return array
        return np.ascontiguousarray(array.reshape(self.window).transpose(3, 2, 0, 1)).reshape(self.their_shape)

    def from_torch(self, array: Array) -> Array:
        """The reverse."""
        if self.window is None:
            return array
        KH, KW, C, F = self.window
        return np.ascontiguousarray(array.reshape(F, C, KH, KW).transpose(2, 3, 1, 0)).reshape(self.shape)


def twins(network: Network) -> list[Twin]:
    """Every parameter of a network, in order."""
    found: list[Twin] = []
    shape, flattened = network.input_shape, None
    for name, layer in zip(network.names, network.layers, strict=True):
        if isinstance(layer, Flatten):
            flattened = shape
        shape = layer.connect(shape)
        for p in layer.parameters:
            window: Shape | None = None
            theirs = p.shape
            if isinstance(layer, Conv2d) and p.name == "w":
                KH, KW, C, F = window = p.shape
                theirs = (F, C, KH, KW)
            elif isinstance(layer, Linear) and p.name == "w":
                window, theirs = (*(flattened or (1, 1, p.shape[0])), p.shape[1]), p.shape[::-1]
            found.append(Twin(f"{name}.{p.name}", f"{name}.{THEIR_NAMES[p.name]}", p.shape, theirs, window))
        if isinstance(layer, Linear):
            flattened = None
    return found
