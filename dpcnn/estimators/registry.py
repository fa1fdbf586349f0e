"""Layers, optimizers and losses of the user, by name."""

from typing import Any, TypeVar

from dpcnn.errors import ConfigError
from dpcnn.nn.layer import Layer
from dpcnn.nn.losses import LOSSES, Loss
from dpcnn.nn.models import KINDS
from dpcnn.optim.optimizer import Optimizer
from dpcnn.optim.optimizers import OPTIMIZERS

TABLES: dict[type[Any], dict[str, type[Any]]] = {Layer: KINDS, Optimizer: OPTIMIZERS, Loss: LOSSES}

Kind = TypeVar("Kind", bound=type[Any])


def register(kind: Kind, name: str = "") -> Kind:
    """Give a layer, an optimizer or a loss a name, by which recipes choose it; also a decorator, ``@dpcnn.register``.

    Registering the class of the same name and module again replaces it, so that a cell of a notebook can run twice.

    Args:
        kind: a subclass of ``Layer``, ``Optimizer`` or ``Loss``.
        name: default: the name of the class in lower case.

    Returns:
        ``kind``.

    Raises:
        ConfigError: it is of another kind, or another class has the name.
    """
    if not isinstance(name, str):
        raise ConfigError(f"register: expected a text as the name, not {repr(name)[:80]}")
    name = name or getattr(kind, "__name__", repr(kind)[:80]).lower()
    table = next((table for base, table in TABLES.items() if isinstance(kind, type) and issubclass(kind, base)), None)
    if table is None:
        raise ConfigError(f"register {name}: expected a subclass of Layer, Optimizer or Loss")
    known = table.get(name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(f"register {name}: {known.__module__}.{known.__qualname__} has this name; give another name")
    table[name] = kind
    return kind
