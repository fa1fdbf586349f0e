"""A recipe trained by PyTorch, in one process: python -m dpcnn.evidence.peers.torch_recipe RECIPE --seed S

The same data in the same order, the same first weights, optimizer, schedule and loss; dropout is PyTorch's
own. Prints a JSON object after each epoch: accuracy on the validation and test samples.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dpcnn.base.rng import permutation
from dpcnn.config import Config
from dpcnn.data.dataset import Samples, find_data, load
from dpcnn.data.holdout import hold_out
from dpcnn.errors import ConfigError
from dpcnn.evidence.peers.options import check_options
from dpcnn.evidence.peers.torch_net import torch_net
from dpcnn.evidence.peers.torch_parts import torch_loss, torch_optimizer
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe
from dpcnn.training.fitted import fitted


def main() -> None:
    """Train, and print an epoch's accuracies a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data")
    parser.add_argument("--max-steps", type=int, default=0)
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    config = replace(
        recipe,
        seed=options.seed,
        data=options.data or recipe.data,
        max_steps=options.max_steps or recipe.max_steps,
    )
    for told in train(config):
        print(json.dumps(told), flush=True)


def train(config: Config) -> Iterator[dict[str, Any]]:
    """Train the recipe, and yield the results after each epoch."""
    check_options(config, "PyTorch")
    if config.ema_decay or config.max_grad_norm or config.augments:
        raise ConfigError("this training in PyTorch has no augmentation, no gradient clipping and no averaged weights")
    torch.manual_seed(config.seed)
    samples, test = (load(find_data(config.data), split, SerialComm()) for split in ("train", "test"))
    config, network = fitted(config, samples.manifest)
    net = torch_net(network, network.initialise(config.seed, config.init, config.init_std))
    optimizer, loss = torch_optimizer(config, net), torch_loss(config)
    holdout = hold_out(samples.labels, config.validation, config.holdout, config.seed)
    training = len(holdout.training)
    steps_per_epoch, step = math.ceil(training / config.batch), 0
    for epoch in range(config.epochs):
        started, order = time.perf_counter(), holdout.training[permutation(config.seed, epoch, training)]
        net.train()
        for start in range(0, training, config.batch):
            if config.max_steps and step == config.max_steps:
                break
            course = SCHEDULES[config.schedule](step / steps_per_epoch, config.epochs, config.gamma)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * course * min(1.0, (step + 1) / (config.warmup + 1))
            images, labels = tensors(samples, order[start : start + config.batch])
            optimizer.zero_grad()
            loss(net(images), labels).backward()
            optimizer.step()
            step += 1
        told = {"epoch": epoch + 1, "step": step, "seconds": round(time.perf_counter() - started, 3)}
        if len(holdout.validation):
            told["validation_accuracy"] = accuracy(net, samples, holdout.validation)
        told["test_accuracy"] = accuracy(net, test, np.arange(len(test)))
        yield told
        if config.max_steps and step == config.max_steps:
            return


def tensors(samples: Samples, numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (n, C, H, W) and labels (n,) of samples."""
    images, labels = samples.take(numbers)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(), torch.from_numpy(labels.astype(np.int64))


def accuracy(net: nn.Module, samples: Samples, numbers: Any) -> float:
    """The accuracy for some samples."""
    net.eval()
    correct = 0
    with torch.no_grad():
        for block in np.array_split(numbers, math.ceil(len(numbers) / 1000)):
            images, labels = tensors(samples, block)
            correct += int((net(images).argmax(dim=1) == labels).sum())
    return correct / len(numbers)


if __name__ == "__main__":
    main()
