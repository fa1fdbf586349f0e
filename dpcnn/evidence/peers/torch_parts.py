"""dpcnn's losses and optimizers in PyTorch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dpcnn.config import Config
from dpcnn.errors import ConfigError
from dpcnn.nn.losses import CrossEntropy, Loss
from dpcnn.optim.optimizer import Optimizer
from dpcnn.optim.optimizers import SGD, AdaGrad, Adam, AdamW, Momentum, Nesterov, RMSProp

LOSS_TWINS: dict[type[Loss], Callable[[Any], nn.Module]] = {
    CrossEntropy: lambda loss: nn.CrossEntropyLoss(label_smoothing=loss.label_smoothing),
}
"""For each type of loss, the function that makes PyTorch's loss, a mean over the batch."""


def _sgd(momentum: float = 0.0, nesterov: bool = False) -> dict[str, Any]:
    return {"momentum": momentum, "nesterov": nesterov, "fused": True}


def _adam(optimizer: Adam) -> dict[str, Any]:
    return {"betas": (optimizer.beta1, optimizer.beta2), "eps": optimizer.epsilon, "fused": True}


OPTIMIZER_TWINS: dict[type[Optimizer], Callable[[Any], tuple[type[Any], dict[str, Any]]]] = {
    Adam: lambda own: (torch.optim.Adam, _adam(own)),
    AdamW: lambda own: (torch.optim.AdamW, _adam(own)),
    SGD: lambda _: (torch.optim.SGD, _sgd()),
    Momentum: lambda own: (torch.optim.SGD, _sgd(own.momentum)),
    Nesterov: lambda own: (torch.optim.SGD, _sgd(own.momentum, nesterov=own.momentum > 0)),
    AdaGrad: lambda own: (torch.optim.Adagrad, {"eps": own.epsilon, "fused": True}),
    RMSProp: lambda own: (torch.optim.RMSprop, {"alpha": own.decay, "eps": own.epsilon, "foreach": True}),
}
"""For each type of optimizer, PyTorch's type and its options: fused, that is one pass in C++, where PyTorch has it."""


def torch_loss(config: Config) -> nn.Module:
    """PyTorch's loss.

    Raises:
        ConfigError: the loss has no entry in :data:`LOSS_TWINS`.
    """
    loss = config.make_loss()
    if type(loss) not in LOSS_TWINS:
        raise ConfigError(f"no PyTorch loss for {config.loss}; {_table('LOSS_TWINS', loss)}")
    return LOSS_TWINS[type(loss)](loss)


def torch_optimizer(config: Config, net: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's optimizer of a network. Weights decay; biases and the parameters of normalisations do not.

    Raises:
        ConfigError: the optimizer has no entry in :data:`OPTIMIZER_TWINS`.
    """
    optimizer = config.make_optimizer()
    if type(optimizer) not in OPTIMIZER_TWINS:
        raise ConfigError(f"no PyTorch optimizer for {config.optimizer}; {_table('OPTIMIZER_TWINS', optimizer)}")
    kind, options = OPTIMIZER_TWINS[type(optimizer)](optimizer)
    weights, others = ([p for p in net.parameters() if (p.ndim > 1) == decays] for decays in (True, False))
    decay = getattr(optimizer, "weight_decay", 0.0)
    groups = [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    twin: torch.optim.Optimizer = kind(groups, lr=config.lr, **options)
    return twin


def _table(name: str, part: Any) -> str:
    return f"add one to dpcnn.evidence.peers.torch_parts.{name}[{type(part).__name__}]"
