"""The peak memory of PyTorch DDP in performance.md: resnet18 at 224x224, two processes with 16 images each."""

import os
import resource

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn import functional as F


def convolution(channels: int, filters: int, kernel_size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, filters, kernel_size, stride, kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(filters)]


class Block(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        first, second = convolution(channels, filters, 3, stride), convolution(filters, filters, 3, 1)
        self.path = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        project = nn.Sequential(*convolution(channels, filters, 1, stride))
        self.shortcut = nn.Identity() if channels == filters else project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.path(x) + self.shortcut(x), inplace=True)


def train(rank: int, channels_last: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    blocks = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    stem = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = nn.Sequential(*stem, *[Block(*block) for block in blocks], *head).to(memory_format=layout)
    parallel = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.rand(16, 3, 224, 224).contiguous(memory_format=layout), torch.randint(0, 10, (16,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(parallel(images), labels).backward()
        optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{'channels last' if channels_last else 'channels first'}, rank {rank}: {peak:,} MB", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for channels_last in (False, True):
        multiprocessing.spawn(train, (channels_last,), 2)
