"""Batch normalisation. Shapes: see layer.py."""

from collections.abc import Mapping
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty, masked
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.activations import ReLU, rectify
from dpcnn.nn.layer import Backward, Layer, Memory, Parameter
from dpcnn.nn.pooling import MaxPool2d
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

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(backward=6 * row_elements(shape, images), keeps_input=True, dx_in_place=True)

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
