"""Normalisation of each sample by itself. Shapes: see layer.py."""

from collections.abc import Mapping
from math import prod

import numpy as np

from dpcnn.base import elementary
from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Backward, Layer, Memory, Parameter, at_least, at_most
from dpcnn.nn.rows import (
    CACHED,
    SUMMED,
    by_channel,
    column_sums,
    in_bands,
    repeated,
    row_elements,
    rows_of,
    sum_of_products,
)

MOST_SIZE = 255
"""The largest ``size`` of a local response normalisation."""


OF_POWERS = 10
"""Elements of float32 for each element whose power is computed by portable numerics, in float64."""


class SampleNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * w + b, with the mean and variance of parts of one sample.

    Unlike those of :class:`dpcnn.nn.normalisation.BatchNorm`, they depend neither on the microbatch nor on training or
    evaluation. It overwrites x, and dy with dx.

    Parameters "w" and "b", each (C,).
    """

    overwrites_input = True
    rows = 4
    """The rows of sums and factors, each of the length of a row of x, that its gradient needs at a time."""

    def __init__(self, epsilon: float = 1e-5) -> None:
        if not epsilon > 0:
            raise ConfigError(f"epsilon: must be above 0, not {epsilon}")
        self.epsilon = epsilon

    def build(self, shape: Shape) -> Shape:
        self.shape, C = shape, shape[-1:]
        self.parameters = (Parameter("w", C, initial_value=1.0), Parameter("b", C))
        return shape

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(backward=self.rows * row_elements(shape, images), keeps_input=True, dx_in_place=True)


class LayerNorm(SampleNorm):
    """Normalisation over the channels, at each pixel of a sample: Ba, Kiros and Hinton, "Layer normalization" (2016),
    eq. 4; on images as in Liu et al., "A ConvNet for the 2020s" (2022), section 2.6."""

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        (*_, N, C), z, y = x.shape, rows_of(x), empty(x.shape, x.dtype)
        rows, times = rows_of(y), z.shape[1] // C
        deviation = empty((len(z), times), x.dtype)
        w, b, ones = repeated(params["w"], times), repeated(params["b"], times), np.ones(C, x.dtype)
        for band in in_bands(z, CACHED):
            vectors, own = z[band].reshape(-1, C), deviation[band].reshape(-1, 1)
            vectors -= (vectors @ ones / C)[:, np.newaxis]
            variance = np.einsum("ij,ij->i", vectors, vectors) / C
            np.sqrt(variance + self.epsilon, out=own[:, 0])
            vectors /= own
            np.multiply(z[band], w, out=rows[band])
            rows[band] += b

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx = (dz - mean of dz - z * mean of (dz z)) / deviation, with dz = dy * w."""
            dx, products = rows_of(dy), np.zeros(N * C, dy.dtype)
            for band in in_bands(dx, SUMMED):
                products += sum_of_products(dx[band], z[band], N * C)
            grads["b"][...] = by_channel(column_sums(dx.reshape(-1, N * C)), C)
            grads["w"][...] = by_channel(products, C)
            for band in in_bands(dx, CACHED):
                dx[band] *= w
                dz, vectors = dx[band].reshape(-1, C), z[band].reshape(-1, C)
                vectors *= (np.einsum("ij,ij->i", dz, vectors) / C)[:, np.newaxis]
                dz -= (dz @ ones / C)[:, np.newaxis]
                dz -= vectors
                dz /= deviation[band].reshape(-1, 1)
            return dx.reshape(dy.shape)

        return y, backward


class GroupNorm(SampleNorm):
    """Normalisation over all pixels of each of ``groups`` groups of channels: Wu and He, "Group normalization" (2018),
    eq. 7."""

    rows = 8

    def __init__(self, groups: int, epsilon: float = 1e-5) -> None:
        super().__init__(epsilon)
        at_least(1, groups=groups)
        self.groups = groups

    def build(self, shape: Shape) -> Shape:
        if shape[-1] % self.groups:
            raise ConfigError(f"groups: must divide the {shape[-1]} channels, not {self.groups}")
        return super().build(shape)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        (*pixel, N, C), centred, y = x.shape, rows_of(x), empty(x.shape, x.dtype)
        rows, columns, times = rows_of(y), N * C, centred.shape[1] // (N * C)
        count = prod(pixel) * (C // self.groups)
        mean = repeated(self._sums(column_sums(centred.reshape(-1, columns)), C) / count, times)
        squares = np.zeros(columns, x.dtype)
        for band in in_bands(centred, SUMMED):
            centred[band] -= mean
            squares += sum_of_products(centred[band], centred[band], columns)
        deviation, w = np.sqrt(self._sums(squares, C) / count + self.epsilon), repeated(params["w"], N)
        slope, offset = repeated(w / deviation, times), repeated(params["b"], N * times)
        for band in in_bands(centred, CACHED):
            np.multiply(centred[band], slope, out=rows[band])
            rows[band] += offset

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx = (dz - mean of dz - z * mean of (dz z)) / deviation, with dz = dy * w and z = centred / deviation."""
            dx, products = rows_of(dy), np.zeros(columns, dy.dtype)
            for band in in_bands(dx, SUMMED):
                products += sum_of_products(dx[band], centred[band], columns)
            sums = column_sums(dx.reshape(-1, columns))
            grads["b"][...] = by_channel(sums, C)
            grads["w"][...] = by_channel(products / deviation, C)
            constant = repeated(self._sums(w * sums, C) / (count * deviation), times)
            by_centred = repeated(self._sums(w * products / deviation, C) / (count * deviation * deviation), times)
            for band in in_bands(dx, CACHED):
                centred[band] *= by_centred
                centred[band] += constant
                dx[band] *= slope
                dx[band] -= centred[band]
            return dx.reshape(dy.shape)

        return y, backward

    def _sums(self, values: Array, C: int) -> Array:
        """For each element of a row (N C,), the sum over the elements of its sample's group of channels: (N C,)."""
        groups = values.reshape(-1, C // self.groups)
        return np.repeat(groups.sum(axis=1), groups.shape[1])


class LocalResponseNorm(Layer):
    """y_c = x_c / s_c^beta, with s_c = k + alpha * (the sum of x^2 over the ``size`` channels around c).

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012),
    section 3.3, and its constants.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        at_least(1, size=size)
        at_most(MOST_SIZE, size=size)
        if size % 2 == 0:
            raise ConfigError(f"size: must be odd, for equally many channels on both sides, not {size}")
        if not (k > 0 and alpha >= 0):
            raise ConfigError(f"k, alpha: must be above 0 and at least 0, not {k} and {alpha}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        powers = OF_POWERS * (elementary.power is elementary.portable_power)
        return Memory(3 * prod(shape), forward=powers * prod(shape), backward=prod(shape))

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        scale, y = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
        self._around(np.square(x, out=y), scale)
        scale *= self.alpha
        scale += self.k
        power = elementary.power(scale, -self.beta, out=empty(x.shape, x.dtype))
        np.multiply(x, power, out=y)
        kept = empty(x.shape, x.dtype)
        kept[...] = x  # the next layer may overwrite y, and the layer before x

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx_c = dy_c / s_c^beta - 2 alpha beta x_c * (the sum of dy x / s^(beta + 1) around c)."""
            dx, shared = empty(dy.shape, dy.dtype), empty(dy.shape, dy.dtype)
            np.multiply(dy, power, out=dx)
            self._around(np.divide(np.multiply(dx, kept, out=shared), scale, out=scale), shared)
            shared *= kept
            shared *= 2 * self.alpha * self.beta
            return np.subtract(dx, shared, out=dx)

        return y, backward

    def _around(self, values: Array, out: Array) -> None:
        """The sum over the channels around each channel, without those beyond the first and last."""
        out[...] = values
        for shift in range(1, min(self.size // 2, values.shape[-1] - 1) + 1):
            out[..., shift:] += values[..., :-shift]
            out[..., :-shift] += values[..., shift:]
