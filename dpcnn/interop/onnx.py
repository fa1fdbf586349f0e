"""Networks as ONNX files: a table of the operators for each type of layer, and the graph of a network.

In the graph, images and feature maps are (N, C, H, W), as ONNX defines its operators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpcnn import __version__
from dpcnn.base.arrays import Array
from dpcnn.data.pixels import BYTES, WHITE
from dpcnn.errors import ConfigError, LaunchError, not_installed
from dpcnn.interop.metadata import to_metadata, white
from dpcnn.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Normalise, Scale
from dpcnn.nn.merging import Add, Concat
from dpcnn.nn.network import Network
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d, Pool2d
from dpcnn.nn.sample_norm import GroupNorm, LayerNorm, LocalResponseNorm
from dpcnn.runs.checkpoint import Checkpoint

OPSET, IR_VERSION = 17, 8
"""The versions of ONNX: old enough for every runtime in use."""

Weights = Mapping[str, Array]
"""The parameters of a layer by their short names."""


@dataclass(frozen=True)
class Operator:
    """An operator of ONNX.

    Attributes:
        kind: its name in ONNX, such as "Conv".
        constants: its last inputs, in order, by names that are unique within the layer.
        attributes: its attributes, as ONNX defines them.
        takes_x: whether the layer's inputs follow the output of the operator before it; the first operator of a layer
            has the layer's inputs anyway.
    """

    kind: str
    constants: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    takes_x: bool = False


def _scale(layer: Scale, weights: Weights) -> list[Operator]:
    factor, low = np.array([layer.span / 255], np.float32), np.array([layer.low], np.float32)
    return [Operator("Mul", {"factor": factor}), Operator("Add", {"low": low})]


def _normalise(layer: Normalise, weights: Weights) -> list[Operator]:
    factor, offset = (each.reshape(-1, 1, 1) for each in (layer.factor, layer.offset))
    return [Operator("Mul", {"factor": factor}), Operator("Add", {"offset": offset})]


def _conv2d(layer: Conv2d, weights: Weights) -> list[Operator]:
    constants = {"w": weights["w"].transpose(3, 2, 0, 1)}  # (KH, KW, C, F) to (F, C, KH, KW)
    if layer.bias:
        constants["b"] = weights["b"]
    sides = {"kernel_shape": list(layer.kernel_size), "strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
    return [Operator("Conv", constants, {**sides, "group": layer.groups, "dilations": [layer.dilation] * 2})]


def _pool(kind: str, layer: Pool2d, **more: int) -> list[Operator]:
    sides = {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
    return [Operator(kind, {}, {**sides, **more})]


def _scalar(kind: str, name: str, value: float, takes_x: bool = False) -> Operator:
    return Operator(kind, {name: np.array([value], np.float32)}, takes_x=takes_x)


def _gelu(layer: GELU, weights: Weights) -> list[Operator]:
    times_x = Operator("Mul", takes_x=True)
    inner = [_scalar("Pow", "two", 2.0), _scalar("Mul", "cubic", 0.044715), _scalar("Add", "one", 1.0), times_x]
    return [
        *inner,
        _scalar("Mul", "factor", (2 / np.pi) ** 0.5),
        Operator("Tanh"),
        _scalar("Add", "one too", 1.0),
        times_x,
        _scalar("Mul", "half", 0.5),
    ]


def _channelwise(weights: Weights, of_images: bool) -> list[Operator]:
    """Multiply each channel by "w" and add "b"."""
    shape = (-1, 1, 1) if of_images else (-1,)
    return [Operator("Mul", {"w": weights["w"].reshape(shape)}), Operator("Add", {"b": weights["b"].reshape(shape)})]


def _layernorm(layer: LayerNorm, weights: Weights) -> list[Operator]:
    norm = Operator(
        "LayerNormalization", {"w": weights["w"], "b": weights["b"]}, {"axis": -1, "epsilon": layer.epsilon}
    )
    if len(layer.shape) == 1:
        return [norm]
    return [Operator("Transpose", {}, {"perm": [0, 2, 3, 1]}), norm, Operator("Transpose", {}, {"perm": [0, 3, 1, 2]})]


def _groupnorm(layer: GroupNorm, weights: Weights) -> list[Operator]:
    *pixel, C = layer.shape
    ones, zeros = np.ones(layer.groups, np.float32), np.zeros(layer.groups, np.float32)
    return [
        Operator("Reshape", {"groups": np.array([0, layer.groups, -1])}),
        Operator("InstanceNormalization", {"ones": ones, "zeros": zeros}, {"epsilon": layer.epsilon}),
        Operator("Reshape", {"channels": np.array([0, C, *pixel])}),
        *_channelwise(weights, bool(pixel)),
    ]


def _batchnorm(layer: BatchNorm, weights: Weights) -> list[Operator]:
    constants = {"scale": weights["w"], **{name: weights[name] for name in ("b", "mean", "variance")}}
    return [Operator("BatchNormalization", constants, {"epsilon": layer.epsilon})]


def _localresponsenorm(layer: LocalResponseNorm, weights: Weights) -> list[Operator]:
    alpha = layer.alpha * layer.size  # ONNX divides it by the size
    return [Operator("LRN", {}, {"size": layer.size, "alpha": alpha, "beta": layer.beta, "bias": layer.k})]


def _flatten(layer: Flatten, weights: Weights) -> list[Operator]:
    to_our_order = Operator("Transpose", {}, {"perm": [0, 2, 3, 1]})  # (N, C, H, W) to (N, H, W, C)
    return [to_our_order, Operator("Flatten", {}, {"axis": 1})]


def _linear(layer: Linear, weights: Weights) -> list[Operator]:
    product = [Operator("MatMul", {"w": weights["w"]})]
    return [*product, Operator("Add", {"b": weights["b"]})] if layer.bias else product


OPERATORS: dict[type[Layer], Callable[[Any, Weights], list[Operator]]] = {
    Scale: _scale,
    Normalise: _normalise,
    Conv2d: _conv2d,
    MaxPool2d: lambda layer, _: _pool("MaxPool", layer),
    AvgPool2d: lambda layer, _: _pool("AveragePool", layer, count_include_pad=1),
    GlobalAvgPool: lambda *_: [Operator("GlobalAveragePool"), Operator("Flatten", {}, {"axis": 1})],
    Add: lambda *_: [Operator("Sum")],
    Concat: lambda *_: [Operator("Concat", {}, {"axis": 1})],
    LeakyReLU: lambda layer, _: [Operator("LeakyRelu", {}, {"alpha": layer.negative_slope})],
    GELU: _gelu,
    SiLU: lambda *_: [Operator("Sigmoid"), Operator("Mul", takes_x=True)],
    LayerNorm: _layernorm,
    GroupNorm: _groupnorm,
    ReLU: lambda *_: [Operator("Relu")],
    Sigmoid: lambda *_: [Operator("Sigmoid")],
    Tanh: lambda *_: [Operator("Tanh")],
    BatchNorm: _batchnorm,
    LocalResponseNorm: _localresponsenorm,
    Flatten: _flatten,
    Linear: _linear,
    Dropout: lambda *_: [],  # it has no effect outside training
}
"""For each type of layer, the function that maps a layer and its weights to operators."""


def as_onnx(checkpoint: Checkpoint) -> bytes:
    """The content of an ONNX file: a graph from "images", float32 (N, H, W, C), to "logits" (N, classes).

    The values of the images are those of the training: 0..255 for uint8, otherwise 0 to the value of white.

    Raises:
        LaunchError: the package onnx is not installed.
        ConfigError: a layer has no entry in :data:`OPERATORS`.
    """
    try:
        from onnx import checker, helper
    except ImportError:
        raise LaunchError(f"--format onnx: {not_installed('onnx', 'export')}") from None
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(_graph(checkpoint), opset_imports=opsets, ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "dpcnn", __version__
    helper.set_model_props(model, to_metadata(checkpoint))
    checker.check_model(model)
    return bytes(model.SerializeToString())


def _graph(checkpoint: Checkpoint) -> Any:
    """The graph, onnx.GraphProto; the outputs of its operators are named x0, x1 and so on."""
    from onnx import TensorProto, helper, numpy_helper

    network = checkpoint.network()
    nodes = [helper.make_node("Transpose", ["images"], ["x0"], perm=[0, 3, 1, 2])]
    constants: list[Any] = []
    if checkpoint.max_value is not None:
        factor = np.array([WHITE[BYTES] / checkpoint.max_value], np.float32)
        constants.append(numpy_helper.from_array(factor, "images.factor"))
        nodes.append(helper.make_node("Mul", ["x0", "images.factor"], ["x1"]))
    outputs = {IMAGES: f"x{len(nodes) - 1}"}  # of each layer
    for number, (name, sources) in enumerate(zip(network.names, network.sources, strict=True)):
        values = inputs = [outputs[source] for source in sources]
        for operator in _operators(checkpoint, network, number):
            named = {f"{name}.{key}": array for key, array in operator.constants.items()}
            constants += [numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in named.items()]
            taken = [*values, *(inputs if operator.takes_x else []), *named]
            values = [f"x{len(nodes)}"]
            nodes.append(helper.make_node(operator.kind, taken, values, **operator.attributes))
        outputs[number] = values[0]
    nodes.append(helper.make_node("Identity", [outputs[len(network.layers) - 1]], ["logits"]))
    told = f"(N, H, W, C), from 0 for black to {white(checkpoint):g} for white"
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *checkpoint.image_shape], told)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", checkpoint.classes])
    return helper.make_graph(nodes, checkpoint.config.model, [images], [logits], constants)


def _operators(checkpoint: Checkpoint, network: Network, number: int) -> list[Operator]:
    """The operators of a layer.

    Raises:
        ConfigError: the layer has no entry in :data:`OPERATORS`.
    """
    name, layer = network.names[number], network.layers[number]
    if type(layer) not in OPERATORS:
        kind = type(layer).__name__
        raise ConfigError(
            f"no ONNX export for {name}: use --format npz, or add the entry dpcnn.interop.onnx.OPERATORS[{kind}]"
        )
    return OPERATORS[type(layer)](layer, {p.name: checkpoint.parameters[f"{name}.{p.name}"] for p in layer.parameters})
