"""Layers: each turns a batch into the next one, and hands back the way for its gradient.

Shapes, in every file of this package::

    N       images of a batch                   x, y    a layer's input and output
    H, W    height and width of the input       w, b    its weights and bias
    C       channels of the input               dx ..   the gradient of the loss sum by x ..
    F       filters: channels of the output
    KH, KW  height and width of the kernel or pooling window
    OH, OW  height and width of the output

Images are (N, H, W, C), so a pixel's channels lie beside each other in memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dpcnn.streams import Draw

Array = NDArray[Any]
Shape = tuple[int, ...]
Backward = Callable[[Array, Mapping[str, Array]], Array | None]

CONVOLUTION_BLOCK = 16
"""Images of a convolution's column matrix: so many that it stays in the second-level cache."""


@dataclass(frozen=True)
class Parameter:
    """A named array of a layer: its shape, and the fan-in that scales its first values (0: zeros)."""

    name: str
    shape: Shape
    fan_in: int


class Workspace:
    """Arrays that are used again at every call: fresh memory costs page faults."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def array(self, key: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """An array of uninitialised values; its memory is that of the last call with this key."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size or buffer.dtype != dtype:
            buffer = self._buffers[key] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


class Layer:
    """A step of a network, without weights of its own: they are passed to it by name.

    An output lives in the layer's workspace until the layer's next call.
    """

    parameters: tuple[Parameter, ...] = ()
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
    """Cross-correlation of (N, H, W, C) with F kernels, zeros around the image.

    Weights "w" (KH, KW, C, F) and, with ``bias``, "b" (F,). As a product of matrices, after
    Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
    processing" (2006), a block of images at a time.
    """

    def __init__(
        self, filters: int, kernel: tuple[int, int], stride: int = 1, padding: int = 0, bias: bool = False
    ) -> None:
        super().__init__()
        self.filters, self.kernel, self.stride, self.padding, self.bias = filters, kernel, stride, padding, bias

    def connect(self, shape: Shape) -> Shape:
        H, W, C = shape
        KH, KW = self.kernel
        fan_in = KH * KW * C
        self.parameters = (Parameter("w", (KH, KW, C, self.filters), fan_in),)
        if self.bias:
            self.parameters += (Parameter("b", (self.filters,), 0),)
        OH = output_length(H, KH, self.stride, self.padding)
        OW = output_length(W, KW, self.stride, self.padding)
        return OH, OW, self.filters

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        N, H, W, _ = x.shape
        w = weights["w"]
        KH, KW, _, F = w.shape
        OH = output_length(H, KH, self.stride, self.padding)
        OW = output_length(W, KW, self.stride, self.padding)
        y = self.workspace.array("y", (N, OH, OW, F), x.dtype)
        for block in blocks(N):
            columns = self._columns(x[block], OH, OW)
            np.matmul(columns, w.reshape(-1, F), out=y[block].reshape(-1, F))
        if self.bias:
            y += weights["b"]

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array | None:
            if self.bias:
                np.sum(dy, axis=(0, 1, 2), out=gradients["b"])
            dw = gradients["w"].reshape(-1, F)
            share = self.workspace.array("share", dw.shape, dw.dtype)
            for block in blocks(N):
                columns = self._columns(x[block], OH, OW)
                np.matmul(columns.T, dy[block].reshape(-1, F), out=dw if block.start == 0 else share)
                if block.start:
                    dw += share
            if not self.needs_dx:
                return None
            dx = self.workspace.array("dx", x.shape, x.dtype)
            for block in blocks(N):
                self._scatter(dy[block], w, dx[block])
            return dx

        return y, backward

    def _padded(self, key: str, N: int, H: int, W: int, C: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """A workspace image with the zero border, and the view of it inside that border."""
        p = self.padding
        padded = self.workspace.array(key, (N, H + 2 * p, W + 2 * p, C), dtype)
        padded[...] = 0
        return padded, padded[:, p : p + H, p : p + W]

    def _columns(self, x: Array, OH: int, OW: int) -> Array:
        """The windows of ``x`` as rows: (N * OH * OW, KH * KW * C)."""
        N, H, W, C = x.shape
        KH, KW = self.kernel
        padded, inside = self._padded("padded", N, H, W, C, x.dtype)
        inside[...] = x
        windows = sliding_window_view(padded, (KH, KW), axis=(1, 2))[:, :: self.stride, :: self.stride]
        columns = self.workspace.array("columns", (N, OH, OW, KH, KW, C), x.dtype)
        np.copyto(columns, windows.transpose(0, 1, 2, 4, 5, 3))
        return columns.reshape(N * OH * OW, KH * KW * C)

    def _scatter(self, dy: Array, w: Array, dx: Array) -> None:
        """Fill ``dx``: each output pixel's gradient goes back to the pixels of its window."""
        N, H, W, C = dx.shape
        _, OH, OW, F = dy.shape
        KH, KW = self.kernel
        shares = self.workspace.array("shares", (KH * KW, N, OH, OW, C), dy.dtype)
        np.matmul(dy.reshape(-1, F), w.reshape(KH * KW, C, F).transpose(0, 2, 1), out=shares.reshape(KH * KW, -1, C))
        padded, inside = self._padded("padded dx", N, H, W, C, dy.dtype)
        for (i, j), share in zip(np.ndindex(KH, KW), shares, strict=True):
            padded[:, strided(i, OH, self.stride), strided(j, OW, self.stride)] += share
        dx[...] = inside


class MaxPool2d(Layer):
    """The largest value of each window; its gradient goes to the first place that holds it."""

    def __init__(self, window: int, stride: int | None = None) -> None:
        super().__init__()
        self.window, self.stride = window, stride or window

    def connect(self, shape: Shape) -> Shape:
        H, W, C = shape
        return output_length(H, self.window, self.stride), output_length(W, self.window, self.stride), C

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        N, H, W, C = x.shape
        OH, OW = output_length(H, self.window, self.stride), output_length(W, self.window, self.stride)
        places = [
            (slice(None), strided(i, OH, self.stride), strided(j, OW, self.stride))
            for i, j in np.ndindex(self.window, self.window)
        ]
        y = self.workspace.array("y", (N, OH, OW, C), x.dtype)
        np.copyto(y, x[places[0]])
        for place in places[1:]:
            np.maximum(y, x[place], out=y)

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            dx = self.workspace.array("dx", x.shape, x.dtype)
            dx[...] = 0
            left = self.workspace.array("left", y.shape, y.dtype)  # of dy, what no place has taken
            np.copyto(left, dy)
            holds = self.workspace.array("holds", y.shape, np.dtype(bool))
            share = self.workspace.array("share", y.shape, y.dtype)
            for place in places:
                np.equal(x[place], y, out=holds)
                np.multiply(left, holds, out=share)
                dx[place] += share
                left -= share
            return dx

        return y, backward


class ReLU(Layer):
    """max(x, 0)."""

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        y = self.workspace.array("y", x.shape, x.dtype)
        np.maximum(x, 0, out=y)

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            dx = self.workspace.array("dx", x.shape, x.dtype)
            positive = self.workspace.array("positive", x.shape, np.dtype(bool))
            np.greater(y, 0, out=positive)
            np.multiply(dy, positive, out=dx)
            return dx

        return y, backward


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
        kept = draw.bits(self.number, x[0].size) >= self.threshold
        mask = self.workspace.array("mask", x.shape, x.dtype)
        np.multiply(kept.reshape(x.shape), x.dtype.type(65536 / (65536 - self.threshold)), out=mask)
        y = np.multiply(x, mask, out=self.workspace.array("y", x.shape, x.dtype))

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array:
            return np.multiply(dy, mask, out=self.workspace.array("dx", x.shape, x.dtype))

        return y, backward


class Flatten(Layer):
    """(N, H, W, C) to (N, H * W * C)."""

    def connect(self, shape: Shape) -> Shape:
        return (int(np.prod(shape)),)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        return x.reshape(len(x), -1), lambda dy, gradients: dy.reshape(x.shape)


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
        return (self.features,)

    def forward(self, x: Array, weights: Mapping[str, Array], draw: Draw | None = None) -> tuple[Array, Backward]:
        w = weights["w"]
        y = self.workspace.array("y", (len(x), self.features), x.dtype)
        np.matmul(x, w, out=y)
        if self.bias:
            y += weights["b"]

        def backward(dy: Array, gradients: Mapping[str, Array]) -> Array | None:
            np.matmul(x.T, dy, out=gradients["w"])
            if self.bias:
                np.sum(dy, axis=0, out=gradients["b"])
            if not self.needs_dx:
                return None
            return np.matmul(dy, w.T, out=self.workspace.array("dx", x.shape, x.dtype))

        return y, backward


def output_length(length: int, window: int, stride: int, padding: int = 0) -> int:
    """How many windows fit along one side of an image."""
    return (length + 2 * padding - window) // stride + 1


def strided(start: int, count: int, stride: int) -> slice:
    """``count`` places from ``start`` on, ``stride`` apart."""
    return slice(start, start + stride * (count - 1) + 1, stride)


def blocks(images: int) -> list[slice]:
    """The images of a batch, a convolution block at a time."""
    return [slice(start, min(start + CONVOLUTION_BLOCK, images)) for start in range(0, images, CONVOLUTION_BLOCK)]
