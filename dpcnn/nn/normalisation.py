"""Normalisation. Shapes: see layer.py."""

from collections.abc import Mapping
from math import prod

import numpy as np

from dpcnn.base import elementary
from dpcnn.base.arrays import Array, Shape, empty, masked, row_length
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.activations import ReLU, rectify
from dpcnn.nn.convolution import bands
from dpcnn.nn.layer import Backward, Layer, Parameter, at_least, at_most
from dpcnn.nn.pooling import MaxPool2d

SUMMED, CACHED = 1 << 22, 1 << 19
"""The largest sizes in bytes of the parts of an array on which a batch normalisation works at a time: of those that it
sums, which decide the last bits, and of those that it passes over several times, in the processor's cache."""

MOST_SIZE = 255
"""The largest ``size`` of a local response normalisation."""


class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * w + b, for each channel.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithm 1. In training, mean and variance are those of the
    microbatch ("ghost batches": Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017, algorithm 1), so
    a microbatch's gradient is a function of it and the weights alone, on any rank. In evaluation they are
    running means of the microbatches' means and variances: these are parameters too, and travel with the gradients.

    It overwrites x with x - mean, which its gradient needs, and dy with dx.

    Weights "w", "b", "mean" and "variance", each (C,).
    """

    overwrites_input = True

    def __init__(self, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        if not (epsilon > 0 and 0 < momentum <= 1):
            raise ConfigError(f"epsilon, momentum: must be above 0, and momentum at most 1, not {epsilon}, {momentum}")
        self.epsilon, self.momentum = epsilon, momentum

    def build(self, shape: Shape) -> Shape:
        C, self.of_images = shape[-1:], len(shape) == 3
        self.parameters = (
            Parameter("w", C, initial_value=1.0),
            Parameter("b", C),
            Parameter("mean", C, momentum=self.momentum),
            Parameter("variance", C, initial_value=1.0, momentum=self.momentum),
        )
        return shape

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        return self.forward_with(None, x, params, rng)

    def forward_with(
        self, after: Layer | None, x: Array, params: Mapping[str, Array], rng: SampleRng | None
    ) -> tuple[Array, Backward]:
        """As ``forward``, of this layer and of the one after it, a ReLU or a pooling, as one layer.

        The ReLU follows part by part, while the part is in the cache. The pooling precedes the scaling, which then has
        fewer elements: the largest x of a window, or the smallest x if w is negative, gives the largest y.
        """
        *pixel, N, C = x.shape
        count, centred = prod(pixel) * N, rows_of(x)
        mean, variance = self._centre(centred, N * C, params, None if rng is None else count)
        w, deviation = params["w"], np.sqrt(variance + self.epsilon)
        shape, values, sign = x.shape, centred, np.ones(C, x.dtype)
        if isinstance(after, MaxPool2d):
            if (w < 0).any():
                sign[w < 0] = -1
                centred *= repeated(sign, centred.shape[1] // C)
            largest, spread = after.forward(centred.reshape(x.shape), {})
            shape, values = largest.shape, rows_of(largest)
        y, times = empty(shape, x.dtype), values.shape[1] // C  # a channel's values lie C apart
        rows = rows_of(y)
        positive = empty(rows.shape, np.dtype(bool)) if isinstance(after, ReLU) else None
        slope, offset = repeated(sign * w / deviation, times), repeated(params["b"], times)
        for band in in_bands(values, CACHED):
            np.multiply(values[band], slope, out=rows[band])
            rows[band] += offset
            if positive is not None:
                rectify(rows[band], positive[band])

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx = w / deviation * (dy - (sum of dy) / count - z * (sum of dy z) / count), z being the normalised x."""
            dx, products = rows_of(dy), np.zeros(N * C, dy.dtype)
            for band in in_bands(values, SUMMED):
                if positive is not None:
                    masked(dx[band], positive[band], out=dx[band])
                products += sum_of_products(dx[band], values[band], N * C)
            product = by_channel(products, C) / deviation
            grads["b"][...] = by_channel(column_sums(dx.reshape(-1, N * C)), C)
            grads["w"][...] = sign * product
            grads["mean"][...] = N * mean
            grads["variance"][...] = N * variance
            if rng is None:
                dx *= slope
                return dx.reshape(dy.shape)
            grads["variance"][...] *= count / max(1, count - 1)
            if isinstance(after, MaxPool2d):
                of_pixels = spread(dx.reshape(shape), {})
                assert of_pixels is not None
                dx = rows_of(of_pixels)
            times, factor = centred.shape[1] // C, w / (deviation * count)
            by_centred, constant = repeated(factor * product / deviation, times), repeated(factor * grads["b"], times)
            by_dx = repeated(w / deviation, times)
            for band in in_bands(centred, CACHED):
                centred[band] *= by_centred
                centred[band] += constant
                dx[band] *= by_dx
                dx[band] -= centred[band]
            return dx.reshape(x.shape)  # (H, W, N, C) or (N, C)

        return y, backward

    def _centre(
        self, centred: Array, columns: int, params: Mapping[str, Array], count: int | None
    ) -> tuple[Array, Array]:
        """Subtract the mean from rows of pixels, of N * C ``columns`` each; return the mean and the variance, (C,).

        ``count``: the number of values of a channel, in training; None: mean and variance are those of ``params``.
        """
        mean, variance = params["mean"], params["variance"]
        C, times = len(mean), centred.shape[1] // len(mean)
        if count is not None:
            mean = by_channel(column_sums(centred.reshape(-1, columns)), C) / count
        for_columns, squares = repeated(mean, times), np.zeros(columns, centred.dtype)
        for band in in_bands(centred, SUMMED):
            centred[band] -= for_columns
            if count is not None:
                squares += sum_of_products(centred[band], centred[band], columns)
        return mean, variance if count is None else by_channel(squares, C) / count


def rows_of(array: Array) -> Array:
    """An array (.., N, C) as rows of whole pixels; a copy if it is not contiguous."""
    return array.reshape(-1, row_length(array.shape))


def in_bands(rows: Array, most: int) -> list[slice]:
    """Bands of ``rows`` of at most so many bytes."""
    return [slice(start, stop) for start, stop in bands(len(rows), rows[0].nbytes, most)]


def repeated(row: Array, times: int) -> Array:
    """``row`` (C,), several times: (times * C,); much faster than ``np.tile``."""
    rows = np.empty((times, len(row)), row.dtype)
    rows[...] = row
    return rows.reshape(-1)


def column_sums(rows: Array) -> Array:
    """The sum over the rows of an array (L, N C): (N C,). A product is faster than NumPy's sum."""
    total: Array = np.ones(len(rows), rows.dtype) @ rows
    return total


def sum_of_products(a: Array, b: Array, columns: int) -> Array:
    """The sum of a * b, contiguous arrays of one shape, over rows of so many columns: (columns,)."""
    total: Array = np.einsum("ij,ij->j", a.reshape(-1, columns), b.reshape(-1, columns))
    return total


class SampleNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * w + b, with the mean and variance of parts of one sample.

    Unlike those of :class:`BatchNorm`, they depend neither on the microbatch nor on training or evaluation.

    Parameters "w" and "b", each (C,).
    """

    def __init__(self, epsilon: float = 1e-5) -> None:
        if not epsilon > 0:
            raise ConfigError(f"epsilon: must be above 0, not {epsilon}")
        self.epsilon = epsilon

    def build(self, shape: Shape) -> Shape:
        self.shape, C = shape, shape[-1:]
        self.parameters = (Parameter("w", C, initial_value=1.0), Parameter("b", C))
        return shape

    def means(self, values: Array) -> Array:
        """The means of the parts of each sample; their shape broadcasts to that of ``values``."""
        raise NotImplementedError

    def parted(self, x: Array) -> Array:
        """A view of (H, W, N, C) or (N, C) with separate axes for the parts of a sample."""
        raise NotImplementedError

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        normal, y = empty(x.shape, x.dtype), empty(x.shape, x.dtype)
        z, parts = self.parted(normal), self.parted(x)
        np.subtract(parts, self.means(parts), out=z)
        deviation = np.sqrt(self.means(np.square(z, out=self.parted(y))) + self.epsilon)
        z /= deviation
        np.multiply(normal, params["w"], out=y)
        y += params["b"]

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx = (dz - mean of dz - z * mean of (dz z)) / deviation, with dz = dy * w."""
            axes = tuple(range(dy.ndim - 1))
            product = empty(dy.shape, dy.dtype)
            np.sum(dy, axis=axes, out=grads["b"])
            np.sum(np.multiply(dy, normal, out=product), axis=axes, out=grads["w"])
            product *= params["w"]
            dy *= params["w"]
            dz, both = self.parted(dy), self.parted(product)
            dz -= self.means(dz)
            dz -= np.multiply(z, self.means(both), out=both)
            dz /= deviation
            return dz.reshape(dy.shape)  # dy, unless that is not contiguous and dz is a copy

        return y, backward


class LayerNorm(SampleNorm):
    """Normalisation over the channels, at each pixel of a sample: Ba, Kiros and Hinton, "Layer normalization" (2016),
    eq. 4; on images as in Liu et al., "A ConvNet for the 2020s" (2022), section 2.6."""

    def means(self, values: Array) -> Array:
        return np.asarray(values.mean(axis=-1, keepdims=True))  # (H, W, N, 1) or (N, 1)

    def parted(self, x: Array) -> Array:
        return x


class GroupNorm(SampleNorm):
    """Normalisation over all pixels of each of ``groups`` groups of channels: Wu and He, "Group normalization" (2018),
    eq. 7."""

    def __init__(self, groups: int, epsilon: float = 1e-5) -> None:
        super().__init__(epsilon)
        at_least(1, groups=groups)
        self.groups = groups

    def build(self, shape: Shape) -> Shape:
        if shape[-1] % self.groups:
            raise ConfigError(f"groups: must divide the {shape[-1]} channels, not {self.groups}")
        return super().build(shape)

    def means(self, values: Array) -> Array:
        return np.asarray(values.mean(axis=(0, 3), keepdims=True))  # (1, N, groups, 1)

    def parted(self, x: Array) -> Array:
        *pixel, N, C = x.shape
        return x.reshape(prod(pixel), N, self.groups, C // self.groups)  # (H W, N, groups, C / groups)


def by_channel(sums: Array, channels: int) -> Array:
    """The sum of each channel, (C,), of a row (N * C,)."""
    total: Array = sums.reshape(-1, channels).sum(axis=0)  # (N, C) -> (C,)
    return total


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
