"""Initial values of weights, float32."""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import elementary
from dpcnn.nn.layer import Parameter

Weights = NDArray[np.float32]


def he(rng: np.random.Generator, parameter: Parameter, std: float) -> Weights:
    """Normal with variance 2 / fan-in: He et al., "Delving deep into rectifiers" (2015), eq. 10."""
    values: Weights = elementary.normal(rng, parameter.shape) * np.float32(sqrt(2 / parameter.fan_in))
    return values


def glorot(rng: np.random.Generator, parameter: Parameter, std: float) -> Weights:
    """Uniform within sqrt(6 / (fan-in + fan-out)): Glorot and Bengio, "Understanding the difficulty of
    training deep feedforward neural networks" (2010), eq. 16."""
    bound = sqrt(6 / (parameter.fan_in + parameter.fan_out))
    values: Weights = (2 * rng.random(parameter.shape, np.float32) - 1) * np.float32(bound)
    return values


def normal(rng: np.random.Generator, parameter: Parameter, std: float) -> Weights:
    """Normal with the given standard deviation, whatever the fan-in."""
    values: Weights = elementary.normal(rng, parameter.shape) * np.float32(std)
    return values


INITS: dict[str, Callable[[np.random.Generator, Parameter, float], Any]] = {
    "he": he,
    "glorot": glorot,
    "normal": normal,
}
