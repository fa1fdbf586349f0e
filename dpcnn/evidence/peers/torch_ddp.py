"""PyTorch DDP with the network, data and batch of a dpcnn run: python -m dpcnn.evidence.peers.torch_ddp

One thread a rank, gloo, fused Adam, gradients as views of the buckets; the samples lie in memory as
float tensors, so that only taking a batch of them costs time. Prints images a second.
"""

import argparse
import os
import socket
import time

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from dpcnn.data.dataset import find_data, load
from dpcnn.evidence.peers.torch_net import translate
from dpcnn.nn.layers import Scale
from dpcnn.nn.models import MODELS, build
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm

WARM_UP = 10  # steps


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64, help="per rank")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layout", choices=("nchw", "channels-last"), default="channels-last")
    parser.add_argument("--model", default="simple-cnn")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--smoothing", type=float, default=0.01)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train, (options, port), nprocs=options.ranks)


def train(rank: int, options: argparse.Namespace, port: int) -> None:
    """One rank."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ.update(GLOO_SOCKET_IFNAME="lo")
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=options.ranks)
    samples = load(find_data(options.data), "train", SerialComm())
    scale, *layers = build(MODELS[options.model], samples.manifest.classes)
    assert isinstance(scale, Scale)
    Network(samples.manifest.image_shape, [scale, *layers])  # tells the layers their shapes
    layout = torch.channels_last if options.layout == "channels-last" else torch.contiguous_format
    numbers = np.arange(rank, len(samples), options.ranks)
    pixels, labels = samples.take(numbers)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().contiguous(memory_format=layout)
    images = images.mul_(scale.span / 255).add_(scale.low)
    targets = torch.from_numpy(labels).long()
    net = nn.Sequential(*map(translate, layers)).to(memory_format=layout)
    ddp = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-3, fused=True)
    loss = nn.CrossEntropyLoss(label_smoothing=options.smoothing)

    def step() -> None:
        chosen = torch.randint(len(targets), (options.batch,))
        optimizer.zero_grad()
        value = loss(ddp(images[chosen].contiguous(memory_format=layout)), targets[chosen])
        value.backward()
        optimizer.step()

    for _ in range(WARM_UP):
        step()
    dist.barrier()
    started = time.perf_counter()
    for _ in range(options.steps):
        step()
    dist.barrier()
    if rank == 0:
        print(options.ranks * options.batch * options.steps / (time.perf_counter() - started), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
