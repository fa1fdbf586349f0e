"""The time of each layer of a recipe in PyTorch, alone and in one thread: python -m dpcnn.evidence.peers.torch_layers

The inputs and the gradient of the output are random; --microbatch is the number of images. Prints a JSON list for each
memory layout: for each layer, the median seconds forward and backward, or null if PyTorch has no such layer, or can't
train it with so few images.
"""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from statistics import median

import torch
from torch import nn

from dpcnn.base.arrays import Shape
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import read_manifest
from dpcnn.evidence.peers.speed import keep_memory
from dpcnn.evidence.peers.torch_net import TWINS, translate
from dpcnn.evidence.peers.torch_training import LAYOUTS
from dpcnn.flags import add_config_flags, override
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.training.fitted import fitted


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.evidence.peers.torch_layers", description=__doc__)
    parser.add_argument("--recipe", default="simple-cnn")
    add_config_flags(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Measure the layers of the command line, and print their times."""
    keep_memory()
    torch.set_num_threads(1)
    config = override(read_recipe(options.recipe), options)
    config, network = fitted(config, read_manifest(find_data(config.data)))

    def times(number: int, layout: torch.memory_format) -> tuple[float, float] | None:
        layer, shapes = network.layers[number], [*network.input_shapes(number), network.shapes[number]]
        if type(layer) not in TWINS:
            return None
        module = translate(layer).to(memory_format=layout).requires_grad_(not layer.frozen).train(not layer.frozen)
        if isinstance(module, nn.ReLU):
            module.inplace = True
        *xs, dy = [random(shape, config.microbatch, layout) for shape in shapes]
        try:
            found = [seconds(module, xs, dy, layer.needs_input_grad) for _ in range(8)][1:]  # the first one warms up
        except ValueError:  # it refuses to normalise a single value of a channel
            return None
        forward, backward = zip(*found, strict=True)
        return median(forward), median(backward)

    numbers = range(len(network.layers))
    print(json.dumps([[times(number, layout) for number in numbers] for layout in LAYOUTS.values()]))
    return DONE


def random(shape: Shape, images: int, layout: torch.memory_format) -> torch.Tensor:
    """Normal numbers: images (N, C, H, W) in a layout, or vectors (N, C)."""
    *pixel, C = shape
    return torch.empty(images, C, *pixel, memory_format=layout if pixel else torch.contiguous_format).normal_()


def seconds(module: nn.Module, xs: Sequence[torch.Tensor], dy: torch.Tensor, learns: bool) -> tuple[float, float]:
    """The seconds forward and backward, on copies that have just been written."""
    inputs, dy = [x.requires_grad_(learns).clone() for x in xs], dy.clone()
    wanted = [tensor for tensor in (*xs, *module.parameters()) if tensor.requires_grad]
    started = time.perf_counter()
    y = module(*inputs)
    between = time.perf_counter()
    if wanted:
        torch.autograd.grad(y, wanted, dy)
    return between - started, time.perf_counter() - between


if __name__ == "__main__":
    sys.exit(run_command(command, make_parser, comm=SerialComm()))
