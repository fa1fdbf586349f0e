"""Layers: each turns a batch into the next one, and hands back the way for its gradient.

Shapes, in every file of this package::

    N       images of a batch                   x, y    a layer's input and output
    H, W    height and width of the input       w, b    its weights and bias
    C       channels of the input               dx ..   the gradient of the loss sum by x ..
    F       filters: channels of the output
    KH, KW  height and width of the kernel or pooling window
    OH, OW  height and width of the output

Images are (H, W, N, C): at each pixel the whole batch lies side by side. So everything that is done
to windows, place by place, is done to long runs of N * C numbers. Vectors are (N, C).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import numpy as np

from dpcnn.memory import Array, Shape, Workspace
from dpcnn.nn.convolution import choose_kernel, output_length, strided
from dpcnn.streams import Draw

SMALL_PRODUCT = 1_000_000
"""Up to so many multiplications, OpenBLAS multiplies matrices as they lie, and does not copy them first."""

Backward = Callable[[Array, Mapping[str, Array]], Array | None]


@dataclass(frozen=True)
class Parameter:
    """A named array of a layer: its shape, and the fan-in that scales its first values (0: zeros)."""

    name: str
    shape: Shape
    fan_in: int


class Layer:
    """A step of a network, without weights of its own: they are passed to it by name.

    An output lives in the layer's workspace until the layer's next call, or until a layer behind it
    writes over it; no layer needs its own output to go back.
    """

    parameters: tuple[Parameter, ...] = ()
    multiplications = 0
    """Of an image's way forward, by the layer's definition."""
    needs_dx = True
    """Whether anything in front of this layer wants its input's gradient; the network decides."""
    number = 0
    """Its place in the network, which names its random stream; the network decides."""

    def __init__(self) -> None:
        self.workspace = Workspace()

    def connect(self, shape: Shape) -> Shape:
        """Take the input's shape without N, declare ``parameters``, return the output's shape."""
        return shape

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        """The output for ``x``, and the function ``backward(dy, gradients) -> dx``.

        ``draw`` is where the layer takes what is random in training; None: there is nothing random,
        as in evaluation. ``backward`` writes the weights' gradients into the arrays of ``gradients``, over what was
        in them, and returns None in place of dx where ``needs_dx`` is false.
        """
        raise NotImplementedError


class Scale(Layer):
    """Pixels 0..255 of any number type to ``low`` .. ``low + span`` of the weights' float type."""

    def __init__(self, low: float, span: float, dtype: Any = np.float32) -> None:
        super().__init__()
        self.low, self.span, self.dtype = low, span, np.dtype(dtype)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        y = self.workspace.array("y", x.shape, self.dtype)
        np.multiply(x, self.dtype.type(self.span / 255), out=y)
        y += self.dtype.type(self.low)

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            dx: Array = dy * self.dtype.type(self.span / 255)
            return dx

        return y, backward


class Conv2d(Layer):
    """Cross-correlation of (H, W, N, C) with F kernels, zeros around the image.

    Weights "w" (KH, KW, C, F) and, with ``bias``, "b" (F,). The way to compute it: see
    :func:`dpcnn.nn.convolution.choose_kernel`.
    """

    def __init__(
        self, filters: int, kernel: tuple[int, int], stride: int = 1, padding: int = 0, bias: bool = False
    ) -> None:
        super().__init__()
        self.filters, self.kernel, self.stride, self.padding, self.bias = filters, kernel, stride, padding, bias

    def connect(self, shape: Shape) -> Shape:
        H, W, C = shape
        KH, KW = self.kernel
        self.parameters = (Parameter("w", (KH, KW, C, self.filters), fan_in=KH * KW * C),)
        if self.bias:
            self.parameters += (Parameter("b", (self.filters,), 0),)
        self.algorithm = choose_kernel(shape, self.kernel, self.stride, self.padding)
        self.output = (
            output_length(H, KH, self.stride, self.padding),
            output_length(W, KW, self.stride, self.padding),
        )
        self.multiplications = prod(self.output) * KH * KW * C * self.filters
        return *self.output, self.filters

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        y = self.workspace.array("y", (*self.output, x.shape[2], self.filters), x.dtype)
        self.algorithm.forward(x, weights["w"], y)
        if self.bias:
            y += weights["b"]

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array | None:
            if self.bias:
                np.sum(dy, axis=(0, 1, 2), out=gradients["b"])
            dx = self.workspace.array("dx", x.shape, x.dtype) if self.needs_dx else None
            self.algorithm.backward(dy, weights["w"], gradients["w"], dx)
            return dx

        return y, backward


class MaxPool2d(Layer):
    """The largest value of each window; its gradient goes to the first place that holds it."""

    def __init__(self, window: int, stride: int | None = None) -> None:
        super().__init__()
        self.window, self.stride = window, stride or window

    def connect(self, shape: Shape) -> Shape:
        H, W, C = shape
        return output_length(H, self.window, self.stride), output_length(W, self.window, self.stride), C

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        H, W, N, C = x.shape
        OH, OW, _ = self.connect((H, W, C))
        first, *others = [
            (strided(i, OH, self.stride), strided(j, OW, self.stride)) for i, j in np.ndindex(self.window, self.window)
        ]
        y = self.workspace.array("y", (OH, OW, N, C), x.dtype)
        larger = self.workspace.array("larger", (len(others), *y.shape), np.dtype(bool))
        largest = x[first]
        for place, flags in zip(others, larger, strict=True):
            np.greater(x[place], largest, out=flags)  # than all places before it
            largest = np.maximum(largest, x[place], out=y)

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            dx = self.workspace.array("dx", (H, W, N, C), dy.dtype)
            tiled = self.stride == self.window and (OH * self.window, OW * self.window) == (H, W)
            if not tiled:
                dx[...] = 0
            left, share = (self.workspace.array(key, dy.shape, dy.dtype) for key in ("left", "share"))
            untaken = dy
            for place, flags in zip(reversed(others), larger[::-1], strict=True):
                share = dx[place] if tiled else share
                np.multiply(untaken, flags, out=share)
                untaken = np.subtract(untaken, share, out=left)
                if not tiled:
                    dx[place] += share
            if tiled:
                dx[first] = untaken
            else:
                dx[first] += untaken
            return dx

        return largest, backward


class ReLU(Layer):
    """max(x, 0), in place of x; its gradient in place of dy."""

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        positive = self.workspace.array("positive", x.shape, np.dtype(bool))
        np.greater(x, 0, out=positive)
        np.maximum(x, self._zeros(x), out=x)

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            return np.multiply(dy, positive, out=dy)

        return x, backward

    def _zeros(self, x: Array) -> Array:
        """A row of zeros: NumPy compares with it three times faster than with a scalar."""
        zeros = self.workspace.array("zeros", x.shape[-2:], x.dtype)
        zeros[...] = 0
        return zeros


class Dropout(Layer):
    """In training, each unit is zero with probability ``part``, and the others grow by 1 / (1 - part).

    Srivastava et al., "Dropout" (2014), section 10, in its inverted form. The probability is
    rounded down to a multiple of 1/65536. Units are drawn by seed, epoch and sample, so a sample's mask is the same
    in any batch on any rank.
    """

    def __init__(self, part: float) -> None:
        super().__init__()
        self.threshold = int(part * 65536)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        if draw is None:
            return x, lambda dy, gradients: dy
        *pixel, N, C = x.shape
        kept = (draw.bits(self.number, x.size // N) >= self.threshold).reshape(N, *pixel, C)
        mask = self.workspace.array("mask", x.shape, x.dtype)
        np.multiply(np.moveaxis(kept, 0, -2), x.dtype.type(65536 / (65536 - self.threshold)), out=mask)
        y = np.multiply(x, mask, out=self.workspace.array("y", x.shape, x.dtype))

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            return np.multiply(dy, mask, out=self.workspace.array("dx", x.shape, x.dtype))

        return y, backward


class Flatten(Layer):
    """(H, W, N, C) to (N, H * W * C)."""

    def connect(self, shape: Shape) -> Shape:
        return (int(np.prod(shape)),)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        H, W, N, C = x.shape
        y = self.workspace.array("y", (N, H, W, C), x.dtype)
        np.copyto(y, x.transpose(2, 0, 1, 3))

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            dx = self.workspace.array("dx", x.shape, x.dtype)
            np.copyto(dx, dy.reshape(N, H, W, C).transpose(1, 2, 0, 3))
            return dx

        return y.reshape(N, -1), backward


class Linear(Layer):
    """x w + b: (N, C) to (N, F), weights "w" (C, F) and, with ``bias``, "b" (F,)."""

    def __init__(self, features: int, bias: bool = False) -> None:
        super().__init__()
        self.features, self.bias = features, bias

    def connect(self, shape: Shape) -> Shape:
        (C,) = shape
        self.parameters = (Parameter("w", (C, self.features), C),)
        if self.bias:
            self.parameters += (Parameter("b", (self.features,), 0),)
        self.multiplications = C * self.features
        return (self.features,)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        w = weights["w"]
        y = self.workspace.array("y", (len(x), self.features), x.dtype)
        np.matmul(x, w, out=y)
        if self.bias:
            y += weights["b"]

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array | None:
            """Some rows of ``w`` at a time, where products can be small, and with C, the longest side, in front."""
            N, (C, F) = len(x), w.shape
            rows = block_rows(C, N * F)
            np.matmul(x.T.reshape(-1, rows, N), dy, out=gradients["w"].reshape(-1, rows, F))
            if self.bias:
                np.sum(dy, axis=0, out=gradients["b"])
            if not self.needs_dx:
                return None
            dy_transposed = self.workspace.array("dy transposed", (F, N), dy.dtype)
            np.copyto(dy_transposed, dy.T)
            dx = self.workspace.array("dx", (C, N), x.dtype)
            np.matmul(w.reshape(-1, rows, F), dy_transposed, out=dx.reshape(-1, rows, N))
            return dx.T

        return y, backward


@cache
def block_rows(rows: int, multiplications_a_row: int) -> int:
    """The most rows, a divisor of ``rows``, that make a small product; all where those would be few."""
    most = min(rows, SMALL_PRODUCT // multiplications_a_row)
    best = max((divisor for divisor in range(1, most + 1) if rows % divisor == 0), default=0)
    return best if best >= 24 else rows
