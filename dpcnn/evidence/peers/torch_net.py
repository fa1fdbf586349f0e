"""Our networks in PyTorch: the same layers, with the same weights."""

from collections import OrderedDict

import torch
from torch import nn

from dpcnn.base.arrays import Array
from dpcnn.interop.torch_layout import torch_names
from dpcnn.nn.activations import ReLU, Sigmoid, Tanh
from dpcnn.nn.layer import Layer
from dpcnn.nn.layers import Conv2d, Dropout, Flatten, Linear, Scale
from dpcnn.nn.network import Network
from dpcnn.nn.normalisation import BatchNorm
from dpcnn.nn.pooling import AvgPool2d, MaxPool2d


def torch_net(network: Network, params: Array) -> nn.Module:
    """A module from pixels, float (N, C, H, W) of 0..255, to logits, with the parameters of a flat vector."""
    modules = (translate(layer) for layer in network.layers)
    net = nn.Sequential(OrderedDict(zip(network.names, modules, strict=True)))
    views = network.views(params)
    weights = {twin.theirs: torch.from_numpy(twin.to_torch(views[twin.ours]).copy()) for twin in torch_names(network)}
    missing, unexpected = net.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing), (missing, unexpected)
    return net


def translate(layer: Layer) -> nn.Module:
    """PyTorch's layer for one of ours, connected."""
    if isinstance(layer, Scale):
        return Scaled(layer.low, layer.span)
    if isinstance(layer, Conv2d):
        channels = layer.parameters[0].shape[2]
        return nn.Conv2d(channels, layer.filters, layer.kernel_size, layer.stride, layer.padding, bias=layer.bias)
    if isinstance(layer, Linear):
        return nn.Linear(layer.parameters[0].shape[0], layer.features, bias=layer.bias)
    if isinstance(layer, BatchNorm):
        (channels,) = layer.parameters[0].shape
        kind = nn.BatchNorm2d if layer.of_images else nn.BatchNorm1d
        return kind(channels, layer.epsilon, layer.momentum)
    if isinstance(layer, MaxPool2d | AvgPool2d):
        return (nn.MaxPool2d if isinstance(layer, MaxPool2d) else nn.AvgPool2d)(layer.kernel_size, layer.stride)
    if isinstance(layer, Dropout):
        return nn.Dropout(layer.threshold / 65536)
    for kind, theirs in ((ReLU, nn.ReLU), (Sigmoid, nn.Sigmoid), (Tanh, nn.Tanh), (Flatten, nn.Flatten)):
        if isinstance(layer, kind):
            return theirs(inplace=True) if theirs is nn.ReLU else theirs()
    raise TypeError(f"no translation of {type(layer).__name__}")


class Scaled(nn.Module):
    """Our Scale."""

    def __init__(self, low: float, span: float) -> None:
        super().__init__()
        self.low, self.factor = low, span / 255

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels 0..255 to ``low`` .. ``low + span``."""
        return x * self.factor + self.low
