"""Layers with parameters, scaling, flattening and dropout. Shapes: see layer.py."""

from collections.abc import Mapping
from functools import cache, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np

from dpcnn.base.arrays import Array, Shape, empty
from dpcnn.base.rng import SampleRng
from dpcnn.errors import ConfigError
from dpcnn.nn.algorithms import choose_algorithm
from dpcnn.nn.convolution import output_length, pixels
from dpcnn.nn.layer import MOST_KERNEL_SIZE, Backward, Layer, Memory, Parameter, at_least, at_most
from dpcnn.nn.rows import by_channel, column_sums, empty_images, repeated
from dpcnn.nn.tuning import TUNING

MOST_PADDING = 64


class Scale(Layer):
    """Pixels 0..255 of any number type to ``low`` .. ``low + span`` of the weights' float type."""

    takes_integers, keeps_input = True, False

    def __init__(self, low: float = 0.0, span: float = 1.0, dtype: Any = np.float32) -> None:
        self.low, self.span, self.dtype = low, span, np.dtype(dtype)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        y = empty_images(x.shape, self.dtype, self.by_image)
        np.multiply(x, self.dtype.type(self.span / 255), out=y)
        y += self.dtype.type(self.low)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx: Array = dy * self.dtype.type(self.span / 255)
            return dx

        return y, backward


class Normalise(Layer):
    """(x - mean) / deviation for each channel of images, of any number type, as the weights' float type.

    Args:
        mean, deviation: (C,) of pixels 0..255; empty: those of the data set, which a training fills in.
    """

    takes_integers, keeps_input = True, False

    def __init__(
        self, mean: tuple[float, ...] = (), deviation: tuple[float, ...] = (), dtype: Any = np.float32
    ) -> None:
        if any(value <= 0 for value in deviation):
            raise ConfigError(f"deviation: must be above 0, not {list(deviation)}")
        self.mean, self.deviation, self.dtype = mean, deviation, np.dtype(dtype)

    def build(self, shape: Shape) -> Shape:
        _, _, C = shape
        if not self.mean or not self.deviation:
            raise ConfigError(
                "mean and deviation are missing, and no data set gives them; write both into the layer, or prepare the "
                "data set again"
            )
        if len(self.mean) != C or len(self.deviation) != C:
            raise ConfigError(f"expected a mean and a deviation for each of {C} channels")
        self.factor = 1 / np.array(self.deviation, self.dtype)
        self.offset = -np.array(self.mean, self.dtype) * self.factor
        return shape

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        H, W, N, C = x.shape
        y = empty_images(x.shape, self.dtype, self.by_image)
        np.copyto(y, x, casting="same_kind")
        # long rows: NumPy is slow where the last axis is as short as C
        rows = y.transpose(2, 0, 1, 3).reshape(N, H * W * C) if self.by_image else y.reshape(H * W, N * C)
        rows *= repeated(self.factor, rows.shape[1] // C)
        rows += repeated(self.offset, rows.shape[1] // C)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx: Array = dy * self.factor
            return dx

        return y, backward


class Conv2d(Layer):
    """Cross-correlation of (H, W, N, C) with F kernels, zeros around the image.

    Weights "w" (KH, KW, C / groups, F) and, with ``bias``, "b" (F,). Each of ``groups`` groups of filters
    takes its own group of channels. The pixels under a kernel lie ``dilation`` apart. How it is computed:
    :func:`dpcnn.nn.algorithms.choose_algorithm`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if len(self.kernel_size) != 2:
            raise ConfigError(f"kernel_size: expected a height and a width, not {list(self.kernel_size)}")
        at_least(1, filters=filters, height=self.kernel_size[0], width=self.kernel_size[1], stride=stride)
        at_least(1, groups=groups, dilation=dilation)
        at_least(0, padding=padding)
        at_most(MOST_PADDING, padding=padding)
        at_most(MOST_KERNEL_SIZE, kernel_size=self.kernel_size[0] * self.kernel_size[1])
        if filters % groups:
            raise ConfigError(f"groups: must divide the {filters} filters, not {groups}")
        self.filters, self.stride, self.padding, self.bias = filters, stride, padding, bias
        self.groups, self.dilation = groups, dilation

    def build(self, shape: Shape) -> Shape:
        H, W, C = shape
        if C % self.groups:
            raise ConfigError(f"groups: must divide the {C} channels, not {self.groups}")
        (KH, KW), c, f = self.kernel_size, C // self.groups, self.filters // self.groups
        self.parameters = (Parameter("w", (KH, KW, c, self.filters), KH * KW * c, KH * KW * f),)
        if self.bias:
            self.parameters += (Parameter("b", (self.filters,)),)
        sides = self.stride, self.padding
        options = shape, self.filters, self.kernel_size, *sides, self.groups, self.dilation
        self.algorithm = cache(partial(choose_algorithm, *options))  # for a number of images
        self.output = output_length(H, KH, *sides, self.dilation), output_length(W, KW, *sides, self.dilation)
        self.multiplications = prod(self.output) * KH * KW * c * self.filters
        return *self.output, self.filters

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return self.algorithm(images=images).memory(shape, output)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        shape, N, w = x.shape, x.shape[2], params["w"]
        algorithm, y = self.algorithm(images=N), empty((*self.output, N, self.filters), x.dtype)
        saved = algorithm.forward(x, w, y)
        if self.bias:
            rows = pixels(y)  # (OH, OW, N F): long runs
            rows += repeated(params["b"], N)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array | None:
            if self.bias:
                grads["b"][...] = by_channel(column_sums(dy.reshape(-1, N * self.filters)), self.filters)
            dx = empty(shape, dy.dtype) if self.needs_input_grad else None
            algorithm.backward(saved, dy, w, grads["w"], dx)
            return dx

        return y, backward


class Dropout(Layer):
    """In training, each unit is zero with probability ``p``, and the others are multiplied by 1 / (1 - p).

    Srivastava et al., "Dropout" (2014), section 10, in its inverted form. The probability is
    rounded down to a multiple of 1/65536. Units are drawn by seed, epoch and sample, so a sample's mask is the same
    in any batch on any rank. It overwrites x with y, and dy with dx.
    """

    overwrites_input = True

    def __init__(self, p: float) -> None:
        if not 0 <= p < 1:
            raise ConfigError(f"p: must be at least 0 and below 1, not {p}")
        self.threshold = int(p * 65536)

    def training_memory(self, shape: Shape, output: Shape, images: int) -> Memory:
        return Memory(prod(output), forward=prod(output), in_place=True, dx_in_place=True)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        if rng is None:
            return x, lambda dy, grads: dy
        *pixel, N, C = x.shape
        kept = (rng.bits(self.number, x.size // N) >= self.threshold).reshape(N, *pixel, C)
        mask = empty(x.shape, x.dtype)
        # (N, H, W, C) -> (H, W, N, C)
        np.multiply(np.moveaxis(kept, 0, -2), x.dtype.type(65536 / (65536 - self.threshold)), out=mask)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            return np.multiply(dy, mask, out=dy)

        return np.multiply(x, mask, out=x), backward


class Flatten(Layer):
    """(H, W, N, C) to (N, H * W * C); a view of x if that lies in memory image by image."""

    overwrites_input = any_order = True
    keeps_input = False

    def build(self, shape: Shape) -> Shape:
        H, W, C = shape
        return (H * W * C,)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        H, W, N, C = x.shape
        y = images = x.transpose(2, 0, 1, 3)  # (H, W, N, C) -> (N, H, W, C)
        if not images.flags.c_contiguous:
            y = empty((N, H, W, C), x.dtype)
            np.copyto(y, images)

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array:
            dx = empty((H, W, N, C), dy.dtype)
            np.copyto(dx, dy.reshape(N, H, W, C).transpose(1, 2, 0, 3))  # (N, H W C) -> (H, W, N, C)
            return dx

        return y.reshape(N, -1), backward  # (N, H W C)


class Linear(Layer):
    """x w + b: (N, C) to (N, F), weights "w" (C, F) and, with ``bias``, "b" (F,)."""

    def __init__(self, features: int, bias: bool = False) -> None:
        at_least(1, features=features)
        self.features, self.bias = features, bias

    def build(self, shape: Shape) -> Shape:
        (C,) = shape
        self.parameters = (Parameter("w", (C, self.features), C, self.features),)
        if self.bias:
            self.parameters += (Parameter("b", (self.features,)),)
        self.multiplications = C * self.features
        return (self.features,)

    def forward(self, x: Array, params: Mapping[str, Array], rng: SampleRng | None = None) -> tuple[Array, Backward]:
        w = params["w"]
        y = empty((len(x), self.features), x.dtype)
        np.matmul(x, w, out=y)  # (N, C) x (C, F) -> (N, F)
        if self.bias:
            y += params["b"]

        def backward(dy: Array, grads: Mapping[str, Array]) -> Array | None:
            """Multiply some rows of ``w`` at a time if this gives small products, with C, the longest side, first."""
            N, (C, F) = len(x), w.shape
            rows = block_rows(C, N * F)
            weight_gradient(contiguous(x), contiguous(dy), grads["w"], rows)
            if self.keep:
                self.keep(self.number, x, dy)
            if self.bias:
                np.sum(dy, axis=0, out=grads["b"])  # (N, F) -> (F,)
            if not self.needs_input_grad:
                return None
            dy_transposed = empty((F, N), dy.dtype)
            np.copyto(dy_transposed, dy.T)  # (N, F) -> (F, N)
            dx = empty((C, N), x.dtype)
            # (C / rows, rows, F) x (F, N) -> (C / rows, rows, N)
            np.matmul(w.reshape(-1, rows, F), dy_transposed, out=dx.reshape(-1, rows, N))
            return dx.T  # (N, C)

        return y, backward


def weight_gradient(x: Array, dy: Array, out: Array, rows: int) -> None:
    """Write x^T dy into ``out``, (C, F), for x (N, C) and dy (N, F): ``rows`` rows, a divisor of C, in each product.

    The bits of a row depend on the shape of its product and on the memory order of x and dy, and not on the products
    beside it.
    """
    N, F = dy.shape
    # (C / rows, rows, N) x (N, F) -> (C / rows, rows, F)
    np.matmul(x.T.reshape(-1, rows, N), dy, out=out.reshape(-1, rows, F))


def contiguous(array: Array) -> Array:
    """The array, or a copy in C order if it is contiguous in neither C order nor Fortran order."""
    return array if array.flags.forc else np.ascontiguousarray(array)


class WeightProduct(NamedTuple):
    """The gradient of a linear layer's weights as a part of the network's vector: x^T dy, for x (N, C) and dy (N, F).

    Attributes:
        start: its first element.
    """

    start: int
    C: int
    F: int

    def rows(self, images: int) -> int:
        """The rows of (C, F) that are computed in one product, for N images."""
        return block_rows(self.C, images * self.F)

    def multiply(self, x: Array, dy: Array, out: Array, rows: int) -> None:
        """Some of these products: x (N, k rows), dy (N, F), out (k rows, F)."""
        weight_gradient(x, dy, out, rows)


@cache
def block_rows(rows: int, multiplications_a_row: int) -> int:
    """The largest divisor of ``rows`` that makes a small product; ``rows`` itself if that divisor is below 24."""
    most = min(rows, TUNING.small_product // multiplications_a_row)
    best = max((divisor for divisor in range(1, most + 1) if rows % divisor == 0), default=0)
    return best if best >= 24 else rows
