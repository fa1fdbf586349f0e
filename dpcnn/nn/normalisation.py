"""Normalisation. Shapes: see layer.py."""

from collections.abc import Mapping
from math import prod

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Backward, Layer, Parameter, at_least, at_most

MOST_SIZE = 255
"""Channels that a local response normalisation adds up."""


class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * w + b, for each channel.

    Ioffe and Szegedy, "Batch normalization" (2015), algorithm 1. In training, mean and variance are those of the
    microbatch ("ghost batches": Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017, algorithm 1), so
    a microbatch's gradient is a function of it and the weights alone, on whatever rank. In evaluation they are
    running means of the microbatches' means and variances: these are parameters too, and travel with the gradients.

    Weights "w", "b", "mean" and "variance", each (C,).
    """

    def __init__(self, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
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
        *pixel, N, C = x.shape
        count = prod(pixel) * N
        rows = x.reshape(-1, N * C)  # long ones: a channel's values are C apart
        y, spare = (self.workspace.array(key, x.shape, x.dtype) for key in ("y", "spare"))
        centred, scratch = y.reshape(rows.shape), spare.reshape(rows.shape)

        mean, variance = params["mean"], params["variance"]
        if rng is not None:
            mean = channel_sums(rows, C) / count
        np.subtract(rows, np.tile(mean, N), out=centred)
        if rng is not None:
            variance = channel_sums(np.square(centred, out=scratch), C) / count
        deviation = np.sqrt(variance + self.epsilon)
        centred *= np.tile(params["w"] / deviation, N)
        centred += np.tile(params["b"], N)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            """dx = w / deviation * (dy - (sum of dy) / count - z * (sum of dy z) / count), z being the normalised x."""
            normal = np.subtract(rows, np.tile(mean, N), out=scratch)
            normal *= np.tile(1 / deviation, N)
            dx = dy.reshape(rows.shape)
            grads["b"][...] = channel_sums(dx, C)
            grads["w"][...] = channel_sums(np.multiply(dx, normal, out=centred), C)
            grads["mean"][...] = N * mean
            grads["variance"][...] = N * variance
            if rng is not None:
                grads["variance"][...] *= count / max(1, count - 1)
                normal *= np.tile(grads["w"] / count, N)
                dx -= normal
                dx -= np.tile(grads["b"] / count, N)
            dx *= np.tile(params["w"] / deviation, N)
            return dx.reshape(x.shape)

        return y, backward


def channel_sums(rows: Array, channels: int) -> Array:
    """The sum of each channel, (C,), of rows (L, N * C)."""
    sums: Array = rows.sum(axis=0).reshape(-1, channels).sum(axis=0)
    return sums


class LocalResponseNorm(Layer):
    """y_c = x_c / s_c^beta, with s_c = k + alpha * (the sum of x^2 over the ``size`` channels around c).

    Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks" (2012),
    section 3.3, and its constants.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> None:
        super().__init__()
        at_least(1, size=size)
        at_most(MOST_SIZE, size=size)
        if size % 2 == 0:
            raise ConfigError(f"size: must be odd, as many channels on either side, not {size}")
        if not (k > 0 and alpha >= 0):
            raise ConfigError(f"k, alpha: must be above 0 and at least 0, not {k} and {alpha}")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        scale, y = (self.workspace.array(key, x.shape, x.dtype) for key in ("scale", "y"))
        self._around(np.square(x), scale)
        scale *= self.alpha
        scale += self.k
        power = np.power(scale, -self.beta, out=self.workspace.array("power", x.shape, x.dtype))
        np.multiply(x, power, out=y)
        kept = self.workspace.array("x", x.shape, x.dtype)
        kept[...] = x  # a layer behind may write over y, and one in front over x

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
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
