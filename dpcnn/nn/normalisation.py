"""Normalisation. Shapes: see layer.py."""

from collections.abc import Mapping

import numpy as np

from dpcnn.errors import ConfigError
from dpcnn.memory import Array
from dpcnn.nn.layer import Backward, Layer, at_least
from dpcnn.streams import Draw


class LocalResponseNorm(Layer):
    """y_c = x_c / s_c^beta, with s_c = k + alpha * (the sum of x^2 over the ``size`` channels around c).

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012),
    section 3.3, and its constants.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        at_least(1, size=size)
        if size % 2 == 0:
            raise ConfigError(f"size: must be odd, as many channels on either side, not {size}")
        if not (k > 0 and alpha >= 0):
            raise ConfigError(f"k, alpha: must be above 0 and at least 0, not {k} and {alpha}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        scale, y = (self.workspace.array(key, x.shape, x.dtype) for key in ("scale", "y"))
        self._around(np.square(x), scale)
        scale *= self.alpha
        scale += self.k
        power = np.power(scale, -self.beta, out=self.workspace.array("power", x.shape, x.dtype))
        np.multiply(x, power, out=y)
        kept = self.workspace.array("x", x.shape, x.dtype)
        kept[...] = x  # a layer behind may write over y, and one in front over x

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            """dx_c = dy_c / s_c^beta - 2 alpha beta x_c * (the sum of dy x / s^(beta + 1) around c)."""
            dx, shared = (self.workspace.array(key, dy.shape, dy.dtype) for key in ("dx", "shared"))
            np.multiply(dy, power, out=dx)
            self._around(dx * kept / scale, shared)
            shared *= kept
            shared *= 2 * self.alpha * self.beta
            return np.subtract(dx, shared, out=dx)

        return y, backward

    def _around(self, values: Array, out: Array) -> None:
        """The sum over the channels around each channel, as many as there are."""
        out[...] = values
        for shift in range(1, min(self.size // 2, values.shape[-1] - 1) + 1):
            out[..., shift:] += values[..., :-shift]
            out[..., :-shift] += values[..., shift:]
