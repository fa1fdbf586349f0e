"""dpcnn: data-parallel training of convolutional networks on NumPy, MPI and HDF5.

Importing the package settles how BLAS and NumPy compute, which only works before NumPy is loaded: see
:mod:`dpcnn.base.startup`. It loads nothing else: the names below are loaded when they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dpcnn.base import startup as startup

if TYPE_CHECKING:
    from dpcnn.estimators.models import Classifier as Classifier
    from dpcnn.estimators.models import Regressor as Regressor
    from dpcnn.estimators.models import load as load
    from dpcnn.estimators.registry import register as register

__version__ = "0.1.0"

_HOMES = {"Classifier": "models", "Regressor": "models", "load": "models", "register": "registry"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dpcnn' has no attribute {name!r}")
    return getattr(import_module(f"dpcnn.estimators.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
