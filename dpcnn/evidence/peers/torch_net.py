"""dpcnn's networks in PyTorch: the same layers with the same parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dpcnn.base.arrays import Array
from dpcnn.errors import ConfigError
from dpcnn.interop.torch_layout import torch_names
from dpcnn.nn.activations import GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Normalise, Scale
from dpcnn.nn.merging import Add, Concat
from dpcnn.nn.network import Network
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, GlobalAvgPool, MaxPool2d
from dpcnn.nn.sample_norm import GroupNorm, LayerNorm, LocalResponseNorm


def torch_net(network: Network, params: Array) -> nn.Module:
    """A module from pixels, float (N, C, H, W) of 0..255, to logits, with the parameters of a flat vector.

    Raises:
        ConfigError: a layer has no entry in :data:`TWINS`.
    """
    net = Graph(network)
    views = network.views(params)
    tensors = {twin.theirs: torch.from_numpy(twin.to_torch(views[twin.ours]).copy()) for twin in torch_names(network)}
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    return net


class Graph(nn.Module):
    """The layers of a network, connected as there, as submodules of the same names."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.sources, self.names = network.sources, network.names
        for number, (name, layer) in enumerate(zip(network.names, network.layers, strict=True)):
            module, sources = translate(layer), network.sources[number]
            if isinstance(module, nn.ReLU):
                module.inplace = network.users[sources[0]] == 1 and type(network.layers[sources[0]]) in NEW
            if hasattr(self, name):
                raise ConfigError(f"PyTorch can't name a layer {name}; give it another name")
            self.add_module(name, module)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output of the last layer."""
        values = {IMAGES: x}
        for number, (name, sources) in enumerate(zip(self.names, self.sources, strict=True)):
            values[number] = getattr(self, name)(*(values[source] for source in sources))
        return values[len(self.names) - 1]


NEW = {Conv2d, Linear, BatchNorm, LayerNorm, GroupNorm, MaxPool2d, AvgPool2d, GlobalAvgPool, Add}
"""Layers whose output has its own memory and is not needed for PyTorch's gradient: a ReLU may overwrite it."""


class Scaled(nn.Module):
    """Pixels 0..255 to ``low`` .. ``low + span``."""

    def __init__(self, low: float, span: float) -> None:
        super().__init__()
        self.low, self.factor = low, span / 255

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + self.low


class Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


class ResponseNorm(nn.LocalResponseNorm):
    """A local response normalisation of images (N, C, H, W), and of vectors (N, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.ndim > 2 else x[..., None]).reshape(x.shape)


class ChannelNorm(nn.LayerNorm):
    """A layer norm over the channels of images (N, C, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _normalise(layer: Normalise) -> nn.Module:
    factor, offset = (torch.from_numpy(each.reshape(-1, 1, 1)) for each in (layer.factor, layer.offset))
    return Function(lambda x: x * factor + offset)


def _conv2d(layer: Conv2d) -> nn.Module:
    channels = layer.parameters[0].shape[2] * layer.groups
    sides = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    return nn.Conv2d(channels, layer.filters, *sides, layer.groups, bias=layer.bias)


def _batchnorm(layer: BatchNorm) -> nn.Module:
    kind = nn.BatchNorm2d if layer.of_images else nn.BatchNorm1d
    return kind(layer.parameters[0].shape[0], layer.epsilon, layer.momentum)


def _layernorm(layer: LayerNorm) -> nn.Module:
    kind = nn.LayerNorm if len(layer.shape) == 1 else ChannelNorm
    return kind(layer.shape[-1], layer.epsilon)


TWINS: dict[type[Layer], Callable[[Any], nn.Module]] = {
    Scale: lambda layer: Scaled(layer.low, layer.span),
    Normalise: _normalise,
    Conv2d: _conv2d,
    MaxPool2d: lambda layer: nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding),
    AvgPool2d: lambda layer: nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding),
    GlobalAvgPool: lambda _: Function(lambda x: x.mean(dim=(2, 3))),
    ReLU: lambda _: nn.ReLU(),
    LeakyReLU: lambda layer: nn.LeakyReLU(layer.negative_slope),
    GELU: lambda _: nn.GELU(approximate="tanh"),
    SiLU: lambda _: nn.SiLU(),
    Sigmoid: lambda _: nn.Sigmoid(),
    Tanh: lambda _: nn.Tanh(),
    BatchNorm: _batchnorm,
    LayerNorm: _layernorm,
    GroupNorm: lambda layer: nn.GroupNorm(layer.groups, layer.shape[-1], layer.epsilon),
    LocalResponseNorm: lambda own: ResponseNorm(own.size, own.alpha * own.size, own.beta, own.k),
    Dropout: lambda layer: nn.Dropout(layer.threshold / 65536),
    Flatten: lambda _: nn.Flatten(),
    Linear: lambda layer: nn.Linear(layer.parameters[0].shape[0], layer.features, bias=layer.bias),
    Add: lambda _: Function(lambda *inputs: sum(inputs[1:], inputs[0])),
    Concat: lambda _: Function(lambda *inputs: torch.cat(inputs, dim=1)),
}
"""For each type of layer, the function that makes PyTorch's layer of a built one of dpcnn's."""


def translate(layer: Layer) -> nn.Module:
    """PyTorch's layer for a built layer.

    Raises:
        ConfigError: it has no entry in :data:`TWINS`.
    """
    if type(layer) not in TWINS:
        kind = type(layer).__name__
        raise ConfigError(f"no PyTorch layer for {kind}; add one to dpcnn.evidence.peers.torch_net.TWINS[{kind}]")
    return TWINS[type(layer)](layer)
