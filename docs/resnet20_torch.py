"""The training of resnet20 in results.md by PyTorch: the same network, data, augmentation and learning rates.

    python resnet20_torch.py DATA SEED

DATA is a data set of dpcnn with images of 28x28x1. One process, with as many threads as there are cores.
"""

import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dpcnn.data.dataset import load
from dpcnn.parallel.comm import SerialComm

EPOCHS, BATCH, RATE, WARMUP = 26, 128, 0.1, 400


class Block(nn.Module):
    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False), nn.BatchNorm2d(filters),
        )  # fmt: skip
        project = nn.Sequential(nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters))
        self.shortcut = nn.Identity() if channels == filters else project

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def network() -> nn.Module:
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 1)]
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(
        *stem, *[Block(*width) for width in widths], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return net


def augment(images: torch.Tensor) -> torch.Tensor:
    """A flip in half of the images, and a crop of the image with a border of 2 pixels."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    corners, padded = torch.randint(0, 5, (len(images), 2)), F.pad(images, (2, 2, 2, 2), value=-1.0)
    return torch.stack(
        [image[:, y : y + 28, x : x + 28] for image, (y, x) in zip(padded, corners.tolist(), strict=True)]
    )


def read(folder: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    samples = load(Path(folder), split, SerialComm())
    images, labels = samples.take(np.arange(len(samples)))
    pixels = torch.from_numpy(np.ascontiguousarray(images).astype(np.float32)).permute(0, 3, 1, 2) * 2 / 255 - 1
    return pixels, torch.from_numpy(labels.astype(np.int64))


def main(folder: str, seed: int) -> None:
    torch.manual_seed(seed)
    (images, labels), (test_images, test_labels) = read(folder, "train"), read(folder, "test")
    kept = torch.randperm(len(images))[:58_000]  # dpcnn keeps 2,000 images for validation
    net = network()
    decayed = [p for p in net.parameters() if p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": [p for p in net.parameters() if p.ndim == 1]}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    steps, step = EPOCHS * math.ceil(len(kept) / BATCH), 0
    for epoch in range(1, EPOCHS + 1):
        started = time.perf_counter()
        net.train()
        for batch in kept[torch.randperm(len(kept))].split(BATCH):
            warm, cosine = (step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP)))
            for group in optimizer.param_groups:
                group["lr"] = RATE * (warm if step < WARMUP else cosine)
            optimizer.zero_grad()
            F.cross_entropy(net(augment(images[batch])), labels[batch]).backward()
            optimizer.step()
            step += 1
        net.eval()
        with torch.no_grad():
            batches = zip(test_images.split(500), test_labels.split(500), strict=True)
            right = sum(int((net(x).argmax(1) == y).sum()) for x, y in batches)
        print(
            f"epoch {epoch}: test accuracy {right / len(test_labels):.4f}, {time.perf_counter() - started:.1f} s",
            flush=True,
        )


main(sys.argv[1], int(sys.argv[2]))
