"""Activations: functions of single elements. Shapes: see layer.py."""

from collections.abc import Mapping
from math import prod, sqrt

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty, masked
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Backward, Layer, Memory
from dpcnn.nn.rows import CACHED, in_bands, rows_of


def rectify(rows: Array, positive: Array) -> None:
    """Write max(rows, 0) over ``rows`` (R, L), and into ``positive`` (R, L), bool, whether each element was above 0."""
    np.greater(rows, 0, out=positive)
    zeros = empty(rows.shape[1:], rows.dtype)  # a scalar would take three times as long in NumPy
    zeros[...] = 0
    np.maximum(rows, zeros, out=rows)


class ReLU(Layer):
    """max(x, 0), which overwrites x; its gradient overwrites dy."""

    overwrites_input = True

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(prod(output) / 4, in_place=True, dx_in_place=True)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        rows = rows_of(x)
        positive = empty(x.shape, np.dtype(bool))
        rectify(rows, positive.reshape(rows.shape))

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return masked(dy, positive, out=dy)

        return rows.reshape(x.shape), backward  # x, unless that is not contiguous and rows are a copy


class Activation(Layer):
    """A function of single elements. It overwrites x, and dy with dx, and keeps its slope for the gradient."""

    overwrites_input = True

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        """Write the values over ``x`` (R, L), and the slopes into ``slope``; ``spare`` (2, R, L) is memory."""
        raise NotImplementedError

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(prod(output), in_place=True, dx_in_place=True)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        rows = rows_of(x)
        slope, bands = empty(x.shape, x.dtype), in_bands(rows, CACHED)
        spare = empty((2, *rows[bands[0]].shape), x.dtype)
        for band in bands:
            self.apply(rows[band], slope.reshape(rows.shape)[band], spare[:, : len(rows[band])])

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, slope, out=dy)

        return rows.reshape(x.shape), backward  # x, unless that is not contiguous and rows are a copy


class LeakyReLU(Activation):
    """x where it is positive, else ``negative_slope`` times x.

    Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models" (2013), section 2.
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        if not 0 <= negative_slope <= 1:
            raise ConfigError(f"negative_slope: must be from 0 to 1, not {negative_slope}")
        self.negative_slope = negative_slope

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        least = spare[0, 0]  # a scalar would take three times as long in NumPy
        least[...] = self.negative_slope
        np.copyto(slope, x > 0)
        np.maximum(slope, least, out=slope)
        x *= slope


class GELU(Activation):
    """x (1 + tanh(u)) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3): Hendrycks and Gimpel, "Gaussian error linear units"
    (2016), section 2, in the form with tanh. Its slope is (1 + t) / 2 + x (1 - t^2) / 2 * du/dx, with t = tanh(u)."""

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        factor, cubic, half = (x.dtype.type(value) for value in (sqrt(2 / np.pi), 0.044715, 0.5))
        square, t = spare
        np.multiply(x, x, out=square)
        np.multiply(square, cubic, out=t)
        t += 1
        t *= x
        t *= factor
        np.tanh(t, out=t)
        square *= 3 * cubic
        square += 1
        square *= factor
        square *= x
        np.multiply(t, t, out=slope)
        np.subtract(1, slope, out=slope)
        try:
            with np.errstate(invalid="raise"):  # the processor looks for it in any case, and takes no time
                slope *= square
        except FloatingPointError:  # 0 times infinity, far from 0
            slope[np.isinf(square)] = 0
        slope += t
        slope += 1
        slope *= half
        t += 1
        t *= half
        x *= t


class SiLU(Activation):
    """x s with s = 1 / (1 + exp(-x)); its slope is s + y (1 - s): Elfwing, Uchibe and Doya, "Sigmoid-weighted linear
    units" (2018), eq. 2 and 4."""

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        s = np.multiply(x, 0.5, out=spare[0])
        np.tanh(s, out=s)
        s *= 0.5
        s += 0.5
        x *= s
        np.subtract(1, s, out=slope)
        slope *= x
        slope += s


class Tanh(Activation):
    """tanh(x); its slope is 1 - y^2."""

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        np.tanh(x, out=x)
        np.multiply(x, x, out=slope)
        np.subtract(1, slope, out=slope)


class Sigmoid(Activation):
    """1 / (1 + exp(-x)), as (1 + tanh(x/2)) / 2, which can't overflow; its slope is y (1 - y)."""

    def apply(self, x: Array, slope: Array, spare: Array) -> None:
        x *= 0.5
        np.tanh(x, out=x)
        x *= 0.5
        x += 0.5
        np.subtract(1, x, out=slope)
        slope *= x
