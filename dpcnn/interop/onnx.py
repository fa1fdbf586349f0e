"""Networks as ONNX files: a table of the operators for each type of layer, and the graph of a network.

In the graph, images and feature maps are (N, C, H, W), as ONNX defines its operators.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dpcnn import __version__
from dpcnn.base.arrays import Array
from dpcnn.errors import ConfigError, LaunchError, not_installed
from dpcnn.interop.metadata import to_metadata
from dpcnn.nn.activations import ReLU, Sigmoid, Tanh
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Scale
from dpcnn.nn.normalisation import BatchNorm, LocalResponseNorm
from dpcnn.nn.pooling import AvgPool2d, MaxPool2d, Pool2d
from dpcnn.runs.checkpoint import Checkpoint

OPSET, IR_VERSION = 17, 8
"""The versions of ONNX: old enough for every runtime in use."""

Weights = Mapping[str, Array]
"""The parameters of a layer by their short names."""


@dataclass(frozen=True)
class Operator:
    """An operator of ONNX. Its first input is the output of the operator in front of it.

    Attributes:
        kind: its name in ONNX, such as "Conv".
        constants: its other inputs, in order, by names that are unique within the layer.
        attributes: its attributes, as ONNX defines them.
    """

    kind: str
    constants: Mapping[str, Array] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _scale(layer: Scale, weights: Weights) -> list[Operator]:
    factor, low = np.array([layer.span / 255], np.float32), np.array([layer.low], np.float32)
    return [Operator("Mul", {"factor": factor}), Operator("Add", {"low": low})]


def _conv2d(layer: Conv2d, weights: Weights) -> list[Operator]:
    constants = {"w": weights["w"].transpose(3, 2, 0, 1)}  # (KH, KW, C, F) to (F, C, KH, KW)
    if layer.bias:
        constants["b"] = weights["b"]
    sides = {"kernel_shape": list(layer.kernel_size), "strides": [layer.stride] * 2, "pads": [layer.padding] * 4}
    return [Operator("Conv", constants, sides)]


def _pool(kind: str, layer: Pool2d) -> list[Operator]:
    return [Operator(kind, {}, {"kernel_shape": [layer.kernel_size] * 2, "strides": [layer.stride] * 2})]


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
    Conv2d: _conv2d,
    MaxPool2d: lambda layer, _: _pool("MaxPool", layer),
    AvgPool2d: lambda layer, _: _pool("AveragePool", layer),
    ReLU: lambda *_: [Operator("Relu")],
    Sigmoid: lambda *_: [Operator("Sigmoid")],
    Tanh: lambda *_: [Operator("Tanh")],
    BatchNorm: _batchnorm,
    LocalResponseNorm: _localresponsenorm,
    Flatten: _flatten,
    Linear: _linear,
    Dropout: lambda *_: [],  # it changes nothing outside training
}
"""For each type of layer, the function that gives the operators of a layer with its weights."""


def as_onnx(checkpoint: Checkpoint) -> bytes:
    """The content of an ONNX file: a graph from "images", float32 (N, H, W, C) of 0..255, to "logits" (N, classes).

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

    nodes = [helper.make_node("Transpose", ["images"], ["x0"], perm=[0, 3, 1, 2])]
    constants: list[Any] = []
    for layer, operator in _operators(checkpoint):
        named = {f"{layer}.{key}": array for key, array in operator.constants.items()}
        constants += [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in named.items()]
        inputs, outputs = [f"x{len(nodes) - 1}", *named], [f"x{len(nodes)}"]
        nodes.append(helper.make_node(operator.kind, inputs, outputs, **operator.attributes))
    nodes.append(helper.make_node("Identity", [f"x{len(nodes) - 1}"], ["logits"]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *checkpoint.image_shape])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", checkpoint.classes])
    return helper.make_graph(nodes, checkpoint.config.model, [images], [logits], constants)


def _operators(checkpoint: Checkpoint) -> Iterator[tuple[str, Operator]]:
    """Each operator in order, with the name of its layer.

    Raises:
        ConfigError: a layer has no entry in :data:`OPERATORS`.
    """
    network = checkpoint.network()
    for name, layer in zip(network.names, network.layers, strict=True):
        if type(layer) not in OPERATORS:
            raise ConfigError(f"no ONNX export for {name}; use --format npz")
        weights = {p.name: checkpoint.parameters[f"{name}.{p.name}"] for p in layer.parameters}
        for operator in OPERATORS[type(layer)](layer, weights):
            yield name, operator
