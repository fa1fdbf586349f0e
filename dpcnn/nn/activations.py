"""Activations: functions of single elements. Shapes: see layer.py."""

from collections.abc import Mapping

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.rng import SampleRng
from dpcnn.nn.layer import Backward, Layer


class ReLU(Layer):
    """max(x, 0), in place of x; its gradient in place of dy."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        positive = self.workspace.array("positive", x.shape, np.dtype(bool))
        np.greater(x, 0, out=positive)
        np.maximum(x, self._zeros(x), out=x)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, positive, out=dy)

        return x, backward

    def _zeros(self, x: Array) -> Array:
        """A row of zeros: NumPy compares with it three times faster than with a scalar."""
        zeros = self.workspace.array("zeros", x.shape[-2:], x.dtype)
        zeros[...] = 0
        return zeros


class Tanh(Layer):
    """tanh(x); its slope is 1 - y^2."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope = (self.workspace.array(key, x.shape, x.dtype) for key in ("y", "slope"))
        np.tanh(x, out=y)
        np.multiply(y, y, out=slope)
        np.subtract(1, slope, out=slope)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return y, backward


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), as (1 + tanh(x/2)) / 2, which can't overflow; its slope is y (1 - y)."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope = (self.workspace.array(key, x.shape, x.dtype) for key in ("y", "slope"))
        half = x.dtype.type(0.5)
        np.multiply(x, half, out=y)
        np.tanh(y, out=y)
        y *= half
        y += half
        np.subtract(1, y, out=slope)
        slope *= y

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return y, backward
