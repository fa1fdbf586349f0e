"""dpcnn's networks in JAX: the same layers, with the parameters as they are in dpcnn, by their full names."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from dpcnn.errors import ConfigError
from dpcnn.evidence.peers.jax_layers import Call, avgpool2d, batchnorm, conv2d, dropout, maxpool2d
from dpcnn.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Normalise, Scale
from dpcnn.nn.merging import Add, Concat
from dpcnn.nn.network import Network
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d

Arrays = dict[str, Any]
"""Arrays by the full names of parameters."""

TWINS: dict[type[Layer], Callable[..., Any]] = {
    Scale: lambda layer, _, x: x * (layer.span / 255) + layer.low,
    Normalise: lambda layer, call, x: x * call.by_channel(layer.factor, x) + call.by_channel(layer.offset, x),
    Conv2d: conv2d,
    MaxPool2d: maxpool2d,
    AvgPool2d: avgpool2d,
    GlobalAvgPool: lambda _, call, x: x.mean(call.axes("HW", x)),
    ReLU: lambda _, __, x: jax.nn.relu(x),
    LeakyReLU: lambda layer, _, x: jax.nn.leaky_relu(x, layer.negative_slope),
    GELU: lambda _, __, x: jax.nn.gelu(x),
    SiLU: lambda _, __, x: jax.nn.silu(x),
    Sigmoid: lambda _, __, x: jax.nn.sigmoid(x),
    Tanh: lambda _, __, x: jnp.tanh(x),
    BatchNorm: batchnorm,
    Dropout: dropout,
    Flatten: lambda _, call, x: x.transpose(call.axes("NHWC", x)).reshape(len(x), -1),  # features in dpcnn's order
    Linear: lambda _, call, x: x @ call.own["w"] + call.own.get("b", 0.0),
    Add: lambda _, __, *inputs: reduce(jnp.add, inputs),
    Concat: lambda _, call, *inputs: jnp.concatenate(inputs, *call.axes("C", inputs[0])),
}
"""For each type of layer, JAX's function of a built layer, its call and its inputs."""


def twin(layer: Layer) -> Callable[..., Any]:
    """JAX's function for a built layer.

    Raises:
        ConfigError: it has no entry in :data:`TWINS`.
    """
    if type(layer) not in TWINS:
        kind = type(layer).__name__
        raise ConfigError(f"no JAX layer for {kind}; add one to dpcnn.evidence.peers.jax_net.TWINS[{kind}]")
    return TWINS[type(layer)]


def logits(network: Network, params: Arrays, first: int, x: Any, layout: str, key: Any) -> tuple[Any, Arrays]:
    """The logits (N, K) of a training step for the output ``x`` of the layer before ``first``; for 0, the images.

    Returns:
        The logits; and the parameters with new running means, from the statistics of the whole batch.
    """
    values, after = {first - 1: x}, dict(params)
    for number, (name, layer) in enumerate(zip(network.names[first:], network.layers[first:], strict=True), first):
        own = {parameter.name: params[f"{name}.{parameter.name}"] for parameter in layer.parameters}
        inputs = [values[source] for source in network.sources[number]]
        values[number] = twin(layer)(layer, Call(own, layout, jax.random.fold_in(key, number)), *inputs)
        after |= {f"{name}.{short}": value for short, value in own.items()}
    return values[len(network.layers) - 1], after
