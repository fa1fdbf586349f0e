"""The training of a dpcnn run in PyTorch: the same first weights, batches, augmentation, rates, loss and optimizer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dpcnn.base.rng import SampleRng
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.evidence.peers.options import check_options
from dpcnn.evidence.peers.torch_net import torch_net
from dpcnn.evidence.peers.torch_parts import torch_loss, torch_optimizer
from dpcnn.nn.layers import Scale
from dpcnn.runs.progress import Progress
from dpcnn.training.fitted import fitted
from dpcnn.training.plan import Plan

LAYOUTS = {"nchw": torch.contiguous_format, "channels-last": torch.channels_last}  # of images (N, C, H, W)


class TorchTraining:
    """The training of one process: its share of each batch, and its step.

    Each of ``ranks`` processes has a nearly equal part of every batch. ``wrap`` makes the module that computes the
    gradients, for example DDP.

    Raises:
        ConfigError: PyTorch lacks a layer, loss, optimizer or option of the configuration.
    """

    def __init__(
        self, config: Config, samples: Samples, layout: str, rank: int = 0, ranks: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda net: net,
    ) -> None:  # fmt: skip
        check_options(config, "PyTorch")
        config, network = fitted(config, samples.manifest)
        self.config, self.samples, self.layout, self.rank, self.ranks = config, samples, LAYOUTS[layout], rank, ranks
        self.plan = Plan(config, samples)
        self.augment = Augment(network.input_shape, config)
        params = network.initialise(config.seed, config.init, config.init_std)
        self.net = torch_net(network, params).to(memory_format=self.layout)
        self.scale: nn.Module = nn.Identity()
        if isinstance(network.layers[0], Scale):  # done when a batch is made, before the step
            self.scale = getattr(self.net, network.names[0])
            setattr(self.net, network.names[0], nn.Identity())
        self.loss, self.optimizer = torch_loss(config), torch_optimizer(config, self.net)
        ema = get_ema_multi_avg_fn(config.ema_decay)
        self.average = AveragedModel(self.net, multi_avg_fn=ema) if config.ema_decay else None
        self.model = wrap(self.net)

    def batch(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """This process's part of the batch of a step, counted from 0: scaled pixels (n, C, H, W) and labels (n,)."""
        indices = np.array_split(self.plan.batch(epoch := self.plan.epoch(number), number), self.ranks)[self.rank]
        images, labels = self.samples.take(indices)
        pixels = torch.from_numpy(self.augment(images, SampleRng(self.config.seed, epoch, indices))).permute(0, 3, 1, 2)
        pixels = torch.empty(pixels.shape, memory_format=self.layout).copy_(pixels)
        return self.scale(pixels), torch.from_numpy(labels.astype(np.int64))

    def step(self, number: int, batch: tuple[torch.Tensor, torch.Tensor]) -> Any:
        """Take a step, and return the mean loss of the batch before it, a tensor."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr(number, Progress())
        self.optimizer.zero_grad()
        loss = self.loss(self.model(batch[0]), batch[1])
        weight = len(batch[1]) * self.ranks / self.plan.images(number + 1, number)
        if weight != 1:  # DDP takes the mean of the processes, not of the images
            loss = loss * weight
        loss.backward()
        if self.config.max_grad_norm:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.net)
        return loss.detach()
