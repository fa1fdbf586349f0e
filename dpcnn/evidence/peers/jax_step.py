"""A training step in JAX: the loss, its gradient, clipping, the optimizer, and the average of the parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.evidence.peers.jax_net import Arrays, logits
from dpcnn.evidence.peers.jax_optimizers import jax_update
from dpcnn.nn.losses import CrossEntropy, Loss
from dpcnn.nn.network import Network

State = dict[str, Any]
"""The parameters "params", the optimizer's vectors, the average if there is one, and the key for random numbers."""


def _cross_entropy(loss: CrossEntropy, outputs: Any, labels: Any) -> Any:
    log_softmax, s = jax.nn.log_softmax(outputs), loss.label_smoothing
    at_labels = jnp.take_along_axis(log_softmax, labels[:, None], axis=1)
    return -((1 - s) * at_labels.mean() + s * log_softmax.mean())


LOSS_TWINS: dict[type[Loss], Callable[[Any, Any, Any], Any]] = {CrossEntropy: _cross_entropy}
"""For each type of loss, JAX's function of the loss, the outputs (N, K) and the labels (N,): a mean over the batch."""


class JaxStep:
    """The step of a configuration, a function of arrays alone; the layers from number ``first`` on are computed.

    Raises:
        ConfigError: JAX lacks the loss or the optimizer.
    """

    def __init__(self, config: Config, network: Network, first: int, layout: str) -> None:
        self.config, self.network, self.first, self.layout = config, network, first, layout
        self.loss, self.optimizer, self.update = config.make_loss(), config.make_optimizer(), jax_update(config)
        self.learned = [p.name for p in network.parameters if not p.momentum]
        if (kind := type(self.loss)) not in LOSS_TWINS:
            where = f"dpcnn.evidence.peers.jax_step.LOSS_TWINS[{kind.__name__}]"
            raise ConfigError(f"no JAX loss for {config.loss}; add one to {where}")

    def start(self) -> State:
        """The state before the first step."""
        seed, names = self.config.seed, self.optimizer.state_names
        flat = self.network.initialise(seed, self.config.init, self.config.init_std)
        params = {name: jnp.array(view) for name, view in self.network.views(flat).items()}
        vectors = {name: [jnp.zeros_like(params[name]) for _ in names] for name in self.learned}
        average = [jax.tree.map(jnp.copy, params)] if self.config.ema_decay else []
        return {"params": params, "vectors": vectors, "average": average, "key": jax.random.key(seed)}

    def gradient(self, params: Arrays, pixels: Any, labels: Any, key: Any) -> tuple[tuple[Any, Arrays], Arrays]:
        """The mean loss of a batch, the parameters with new running means, and the gradient of the learned ones."""

        def loss(learned: Arrays) -> tuple[Any, Arrays]:
            outputs, after = logits(self.network, params | learned, self.first, pixels, self.layout, key)
            return LOSS_TWINS[type(self.loss)](self.loss, outputs, labels), after

        own = {name: params[name] for name in self.learned}
        found: tuple[tuple[Any, Arrays], Arrays] = jax.value_and_grad(loss, has_aux=True)(own)
        return found

    def __call__(self, state: State, scalars: Any, pixels: Any, labels: Any) -> tuple[State, Any]:
        """The state after a step, and the mean loss before it."""
        key, drawn = jax.random.split(state["key"])
        (loss, params), grads = self.gradient(state["params"], pixels, labels, drawn)
        if self.config.max_grad_norm:
            norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in grads.values()))
            grads = jax.tree.map(lambda g: g * jnp.minimum(1, self.config.max_grad_norm / norm), grads)
        vectors, share = {}, 1 - self.config.ema_decay
        for name, g in grads.items():
            decay = getattr(self.optimizer, "weight_decay", 0.0) * (g.ndim > 1)  # biases do not decay
            old = state["vectors"][name]
            params[name], *vectors[name] = self.update(self.optimizer, scalars, decay, params[name], g, *old)
        average = [jax.tree.map(lambda a, p: a + share * (p - a), each, params) for each in state["average"]]
        return {"params": params, "vectors": vectors, "average": average, "key": key}, loss
