"""dpcnn's layers in JAX: functions of a layer, its call and its inputs, for images in the layout NHWC or NCHW."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dpcnn.nn.layers import Conv2d, Dropout
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, MaxPool2d, Pool2d


@dataclass(frozen=True)
class Call:
    """A layer's parameters by their short names, the layout of images, and a key for random numbers."""

    own: dict[str, Any]
    layout: str
    key: Any

    def axes(self, names: str, x: Any) -> tuple[int, ...]:
        """The axes of images or vectors ``x`` with these names, such as "HW"."""
        layout = self.layout if x.ndim == 4 else "NC"
        return tuple(layout.index(name) for name in names if name in layout)

    def by_channel(self, values: Any, x: Any) -> Any:
        """Values (C,) in a shape that broadcasts to ``x``."""
        return jnp.expand_dims(values, self.axes("NHW", x))


def conv2d(layer: Conv2d, call: Call, x: Any) -> Any:
    """The convolution of XLA."""
    strides, padding, dilation = (layer.stride,) * 2, [(layer.padding,) * 2] * 2, (layer.dilation,) * 2
    layouts, w = (call.layout, "HWIO", call.layout), call.own["w"]
    y = lax.conv_general_dilated(x, w, strides, padding, None, dilation, layouts, layer.groups)
    return y + call.by_channel(call.own["b"], y) if layer.bias else y


def _windows(layer: Pool2d, call: Call, x: Any, border: float) -> Iterator[Any]:
    """The pixels at each position in the windows: on CPUs, much faster than the gradient of ``lax.reduce_window``."""
    h, w = call.axes("HW", x)
    x = jnp.pad(x, [(layer.padding * (axis in (h, w)),) * 2 for axis in range(4)], constant_values=border)
    (OH, OW), s = layer.output, layer.stride
    for i, j in np.ndindex(layer.kernel_size, layer.kernel_size):
        rows = lax.slice_in_dim(x, i, i + (OH - 1) * s + 1, s, axis=h)
        yield lax.slice_in_dim(rows, j, j + (OW - 1) * s + 1, s, axis=w)


def maxpool2d(layer: MaxPool2d, call: Call, x: Any) -> Any:
    """The largest value of each window; its gradient goes to the first position that holds it."""
    return reduce(lambda most, other: jnp.where(other > most, other, most), _windows(layer, call, x, -jnp.inf))


def avgpool2d(layer: AvgPool2d, call: Call, x: Any) -> Any:
    """The mean of each window."""
    return reduce(jnp.add, _windows(layer, call, x, 0.0)) * (1 / layer.kernel_size**2)


def batchnorm(layer: BatchNorm, call: Call, x: Any) -> Any:
    """Normalisation by the statistics of the whole batch, which also change the running means in ``call.own``."""
    axes, own = call.axes("NHW", x), call.own
    mean = x.mean(axes)
    centred = x - call.by_channel(mean, x)
    variance, count = jnp.square(centred).mean(axes), x.size // mean.size
    for name, value in (("mean", mean), ("variance", variance * (count / max(1, count - 1)))):
        own[name] += layer.momentum * (lax.stop_gradient(value) - own[name])
    slope = own["w"] * lax.rsqrt(variance + layer.epsilon)
    return centred * call.by_channel(slope, x) + call.by_channel(own["b"], x)


def dropout(layer: Dropout, call: Call, x: Any) -> Any:
    """Inverted dropout, with JAX's random numbers."""
    p = layer.threshold / 65536
    return jnp.where(jax.random.bernoulli(call.key, 1 - p, x.shape), x / (1 - p), 0)
