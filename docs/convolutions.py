"""Compare random convolutions with PyTorch's, one thread each: python docs/convolutions.py SEED COUNT

Each convolution is measured alone, forward and backward, in turns with PyTorch's two memory layouts; the ratio is the
time of the faster one divided by that of dpcnn. A convolution of three channels or fewer is a first layer: its input
has no gradient. The script prints the ratios by the algorithm of dpcnn, and the slowest convolutions. Needs the extra
torch.
"""

import argparse
import time
from collections import defaultdict
from statistics import median
from typing import NamedTuple

import dpcnn  # noqa: F401  before NumPy: it sets BLAS threads and kernels

import numpy as np  # isort: skip
import torch

from dpcnn.base.arrays import Array
from dpcnn.base.text import markdown
from dpcnn.evidence.peers.speed import keep_memory
from dpcnn.nn.convolution import Kernel
from dpcnn.nn.layers import Conv2d

ROUNDS, SLOWEST = 6, 10
LEAST_WORK, MOST_WORK, MOST_VALUES = 1e7, 1.5e9, 3e7
"""Multiplications, and values of the input and of the output, of the convolutions that are measured."""


class Case(NamedTuple):
    """A convolution of N images (H, H, C) with F filters."""

    kernel_size: int
    stride: int
    padding: int
    H: int
    C: int
    F: int
    N: int


def draw(rng: np.random.Generator) -> Case:
    """A random convolution of a usual kind and size."""
    while True:
        r = int(rng.choice([1, 2, 3, 3, 3, 4, 5, 7, 9]))
        stride, padding = int(rng.choice([1, 1, 2, 3, r])), int(rng.choice([0, 1, r // 2, r // 2]))
        channels = int(rng.choice([1, 3, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]))
        filters = int(rng.choice([8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]))
        side = int(rng.choice([4, 6, 7, 8, 12, 14, 16, 20, 24, 28, 32, 48, 56, 64, 112, 224]))
        case = Case(r, stride, padding, side, channels, filters, int(rng.choice([8, 16, 32, 64, 128])))
        outputs = ((side + 2 * padding - r) // stride + 1) ** 2
        values = case.N * max(side**2 * channels, outputs * filters)
        work = case.N * outputs * r**2 * channels * filters
        usual = padding < r <= side + 2 * padding and stride <= r
        if usual and LEAST_WORK < work < MOST_WORK and values < MOST_VALUES:
            return case


def measure(case: Case, rng: np.random.Generator) -> tuple[str, list[float]]:
    """The algorithm of dpcnn, and the seconds of dpcnn and of PyTorch in each memory layout."""
    r, stride, padding, H, C, F, N = case
    layer = Conv2d(F, r, stride, padding)
    layer.build((H, H, C))
    layer.needs_input_grad = C > 3
    x, dy = (rng.standard_normal((*side, N, n), np.float32) for side, n in (((H, H), C), (layer.output, F)))
    w = rng.standard_normal((r, r, C, F), np.float32) / np.float32(r * np.sqrt(C))
    grads = {"w": np.empty_like(w)}

    def ours() -> None:
        _, backward = layer.forward(x, {"w": w})
        backward(dy, grads)

    def theirs(layout: torch.memory_format) -> None:
        inputs, weights, dys = tensors[layout]
        inputs.grad = weights.grad = None
        torch.nn.functional.conv2d(inputs, weights, stride=stride, padding=padding).backward(dys)

    def tensor(array: Array, order: tuple[int, ...], layout: torch.memory_format) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(order))).contiguous(memory_format=layout)

    tensors = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs, dys = (tensor(array, (2, 3, 0, 1), layout) for array in (x, dy))
        weights = tensor(w, (3, 2, 0, 1), layout).requires_grad_()
        tensors[layout] = inputs.requires_grad_(layer.needs_input_grad), weights, dys
    seconds: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        for times, action in zip(seconds, (ours, *(lambda own=own: theirs(own) for own in tensors)), strict=True):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
    return name(layer.algorithm(images=N)), [median(times[1:]) for times in seconds]  # the first round warms up


def name(kernel: Kernel) -> str:
    """The name of an algorithm, and of the one that it uses."""
    plain = getattr(kernel, "plain", None)
    return type(kernel).__name__ + (f", {name(plain)}" if plain else "")


def main(seed: int, count: int) -> None:
    """Measure so many convolutions, and print the tables."""
    keep_memory()
    torch.set_num_threads(1)
    rng, rows, ratios = np.random.default_rng(seed), [], defaultdict(list)
    for _ in range(count):
        case = draw(rng)
        algorithm, (own, *others) = measure(case, rng)
        rows.append((min(others) / own, algorithm, case, own, min(others)))
        ratios[algorithm].append(min(others) / own)
    ratios["all"] = [ratio for ratio, *_ in rows]
    table = [
        (kind, len(own), f"{median(own):.2f}", f"{min(own):.2f}", f"{sum(ratio < 0.9 for ratio in own) / len(own):.0%}")
        for kind, own in sorted(ratios.items(), key=lambda item: -len(item[1]))
    ]
    print(markdown(("algorithm", "convolutions", "ratio, median", "least", "below 0.9"), table), end="\n\n")
    slowest = [
        (f"{ratio:.2f}", algorithm, *case, f"{1e3 * own:.1f}", f"{1e3 * other:.1f}")
        for ratio, algorithm, case, own, other in sorted(rows)[:SLOWEST]
    ]
    print(markdown(("ratio", "algorithm", "kernel", "stride", "padding", *"HCFN", "dpcnn, ms", "PyTorch, ms"), slowest))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare random convolutions with PyTorch's.")
    parser.add_argument("seed", type=int, metavar="SEED")
    parser.add_argument("count", type=int, metavar="COUNT", help="of the convolutions")
    arguments = parser.parse_args()
    if arguments.seed < 0 or arguments.count < 1:
        parser.error("SEED must be at least 0, and COUNT at least 1")
    main(arguments.seed, arguments.count)
