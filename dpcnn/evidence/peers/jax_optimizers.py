"""dpcnn's optimizers in JAX: functions of one array, its gradient and its state."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.optim.optimizer import Optimizer
from dpcnn.optim.optimizers import SGD, AdaGrad, Adam, AdamW, Momentum, Nesterov, RMSProp

Update = Callable[..., Any]
"""``update(optimizer, scalars, decay, p, g, *state) -> (p, *state)``: the arrays after a step. See :func:`scalars`."""


def scalars(optimizer: Any, step: int, lr: float) -> Any:
    """The learning rate, and Adam's bias corrections 1 - beta^step of both averages, (3,); steps count from 1."""
    betas = (getattr(optimizer, "beta1", 0.0), getattr(optimizer, "beta2", 0.0))
    return np.array([lr, *(1 - beta**step for beta in betas)], np.float32)


def _adam(own: Adam, scalars: Any, decay: float, p: Any, g: Any, m: Any, v: Any) -> Any:
    lr, first, second = scalars
    m = own.beta1 * m + (1 - own.beta1) * g
    v = own.beta2 * v + (1 - own.beta2) * g * g
    correction = jnp.sqrt(second)
    a = lr * correction / first * m / (jnp.sqrt(v) + own.epsilon * correction)
    return p * (1 - lr * decay) - a, m, v


def _sgd(own: SGD, scalars: Any, decay: float, p: Any, g: Any) -> Any:
    return (p - scalars[0] * (g + decay * p),)


def _momentum(own: Momentum, scalars: Any, decay: float, p: Any, g: Any, u: Any) -> Any:
    u = own.momentum * u + g + decay * p
    return p - scalars[0] * u, u


def _nesterov(own: Nesterov, scalars: Any, decay: float, p: Any, g: Any, u: Any) -> Any:
    g = g + decay * p
    u = own.momentum * u + g
    return p - scalars[0] * (g + own.momentum * u), u


def _adagrad(own: AdaGrad, scalars: Any, decay: float, p: Any, g: Any, h: Any) -> Any:
    h = h + g * g
    return p - scalars[0] * g / (jnp.sqrt(h) + own.epsilon), h


def _rmsprop(own: RMSProp, scalars: Any, decay: float, p: Any, g: Any, h: Any) -> Any:
    h = own.decay * h + (1 - own.decay) * g * g
    return p - scalars[0] * g / (jnp.sqrt(h) + own.epsilon), h


OPTIMIZER_TWINS: dict[type[Optimizer], Update] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    Momentum: _momentum,
    Nesterov: _nesterov,
    AdaGrad: _adagrad,
    RMSProp: _rmsprop,
}
"""JAX's update for each type of optimizer."""


def jax_update(config: Config) -> Update:
    """JAX's update of the configuration's optimizer.

    Raises:
        ConfigError: the optimizer has no entry in :data:`OPTIMIZER_TWINS`.
    """
    kind = type(config.make_optimizer())
    if kind not in OPTIMIZER_TWINS:
        where = f"dpcnn.evidence.peers.jax_optimizers.OPTIMIZER_TWINS[{kind.__name__}]"
        raise ConfigError(f"no JAX optimizer for {config.optimizer}; add one to {where}")
    return OPTIMIZER_TWINS[kind]
