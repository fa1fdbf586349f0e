"""The training of a dpcnn run in JAX: the same first weights, batches, augmentation, rates, loss and optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpcnn.base.rng import SampleRng
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.evidence.peers.jax_net import twin
from dpcnn.evidence.peers.jax_optimizers import scalars
from dpcnn.evidence.peers.jax_step import JaxStep
from dpcnn.evidence.peers.options import check_options
from dpcnn.nn.layers import Scale
from dpcnn.runs.progress import Progress
from dpcnn.training.fitted import fitted
from dpcnn.training.plan import Plan

LAYOUTS = ("NHWC", "NCHW")


class JaxTraining:
    """The training of one process: its batches and its step. Batch normalisation is over the whole batch.

    A step is one jitted function, which reuses the memory of the state that it is given.

    Raises:
        ConfigError: JAX lacks a layer, loss, optimizer or option of the configuration.
    """

    def __init__(self, config: Config, samples: Samples, layout: str) -> None:
        check_options(config, "JAX")
        config, network = fitted(config, samples.manifest)
        self.config, self.samples, self.layout, self.plan = config, samples, layout, Plan(config, samples)
        for layer in network.layers:
            twin(layer)
        self.augment, self.scale = Augment(network.input_shape, config), network.layers[0]
        self.scales = isinstance(self.scale, Scale)  # when a batch is made
        self.function = JaxStep(config, network, int(self.scales), layout)
        self.state = self.function.start()
        self.jitted = jax.jit(self.function, donate_argnums=0)

    def batch(self, number: int) -> tuple[Any, Any]:
        """The batch of a step, counted from 0: pixels in the layout, scaled if the network scales first; and labels."""
        epoch = self.plan.epoch(number)
        indices = self.plan.batch(epoch, number)
        images, labels = self.samples.take(indices)
        pixels = self.augment(images, SampleRng(self.config.seed, epoch, indices)).astype(np.float32)
        pixels = twin(self.scale)(self.scale, None, pixels) if self.scales else pixels
        axes = ["NHWC".index(axis) for axis in self.layout]
        return jnp.array(np.ascontiguousarray(pixels.transpose(axes))), jnp.array(labels, jnp.int32)

    def step(self, number: int, batch: tuple[Any, Any]) -> Any:
        """Take a step, and return the mean loss of the batch before it, an array that may still be computed."""
        numbers = scalars(self.function.optimizer, number + 1, self.plan.lr(number, Progress()))
        self.state, loss = self.jitted(self.state, numbers, *batch)
        return loss
