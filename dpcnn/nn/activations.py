"""Activations: functions of single elements. Shapes: see layer.py."""

from collections.abc import Mapping
from math import sqrt

import numpy as np

from dpcnn.base.arrays import Array, empty, masked, row_length
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Backward, Layer


def rectify(rows: Array, positive: Array) -> None:
    """Write max(rows, 0) over ``rows`` (R, L), and into ``positive`` (R, L), bool, whether each element was above 0."""
    np.greater(rows, 0, out=positive)
    zeros = empty(rows.shape[1:], rows.dtype)  # a scalar would take three times as long in NumPy
    zeros[...] = 0
    np.maximum(rows, zeros, out=rows)


class ReLU(Layer):
    """max(x, 0), which overwrites x; its gradient overwrites dy."""

    overwrites_input = True

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        rows = x.reshape(-1, row_length(x.shape))
        positive = empty(x.shape, np.dtype(bool))
        rectify(rows, positive.reshape(rows.shape))

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return masked(dy, positive, out=dy)

        return rows.reshape(x.shape), backward  # x, unless that is not contiguous and rows are a copy


class LeakyReLU(Layer):
    """x where it is positive, else ``negative_slope`` times x, which overwrites x; its gradient overwrites dy.

    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models" (2013), section 2.
    """

    overwrites_input = True

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not 0 <= negative_slope <= 1:
            raise ConfigError(f"negative_slope: must be from 0 to 1, not {negative_slope}")
        self.negative_slope = negative_slope

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        slope = empty(x.shape, x.dtype)
        np.copyto(slope, x > 0)
        np.maximum(slope, x.dtype.type(self.negative_slope), out=slope)
        x *= slope

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return x, backward


class GELU(Layer):
    """x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3): Hendrycks and Gimpel, "Gaussian error linear units"
    (2016), section 2, in the form with tanh."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope, square = (empty(x.shape, x.dtype) for _ in range(3))
        factor, cubic, half = (x.dtype.type(value) for value in (sqrt(2 / np.pi), 0.044715, 0.5))
        np.multiply(x, x, out=square)
        np.multiply(square, cubic, out=y)
        y += 1
        y *= x
        y *= factor
        t = np.tanh(y, out=y)

        # dy/dx = (1 + t) / 2 + x (1 - t^2) / 2 * factor (1 + 3 cubic x^2)
        square *= 3 * cubic
        square += 1
        square *= factor
        square *= x
        np.multiply(t, t, out=slope)
        np.subtract(1, slope, out=slope)
        slope *= square
        slope += t
        slope += 1
        slope *= half
        t += 1
        t *= x
        t *= half

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return y, backward


class SiLU(Layer):
    """x s with s = 1 / (1 + exp(-x)); its slope is s + y (1 - s): Elfwing, Uchibe and Doya, "Sigmoid-weighted linear
    units" (2018), eq. 2 and 4."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope, s = (empty(x.shape, x.dtype) for _ in range(3))
        half = x.dtype.type(0.5)
        np.multiply(x, half, out=s)
        np.tanh(s, out=s)
        s *= half
        s += half
        np.multiply(x, s, out=y)
        np.subtract(1, s, out=slope)
        slope *= y
        slope += s

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return y, backward


class Tanh(Layer):
    """tanh(x); its slope is 1 - y^2."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope = (empty(x.shape, x.dtype) for _ in range(2))
        np.tanh(x, out=y)
        np.multiply(y, y, out=slope)
        np.subtract(1, slope, out=slope)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return y, backward


class Sigmoid(Layer):
    """1 / (1 + exp(-x)), as (1 + tanh(x/2)) / 2, which can't overflow; its slope is y (1 - y)."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y, slope = (empty(x.shape, x.dtype) for _ in range(2))
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
