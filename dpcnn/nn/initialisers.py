"""Initial values of weights, float32."""

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from dpcnn.base import elementary
from dpcnn.nn.layer import Parameter

Weights = NDArray[np.float32]


def he(rng: np.random.Generator, parameter: Parameter, std: float, out: Weights) -> None:
    """Normal with variance 2 / fan-in: He et al., "Delving deep into rectifiers" (2015), eq. 10."""
    normal(rng, parameter, sqrt(2 / parameter.fan_in), out)


def glorot(rng: np.random.Generator, parameter: Parameter, std: float, out: Weights) -> None:
    """Uniform within sqrt(6 / (fan-in + fan-out)): Glorot and Bengio, "Understanding the difficulty of
    training deep feedforward neural networks" (2010), eq. 16."""
    rng.random(dtype=np.float32, out=out)
    out *= 2
    out -= 1
    out *= np.float32(sqrt(6 / (parameter.fan_in + parameter.fan_out)))


def normal(rng: np.random.Generator, parameter: Parameter, std: float, out: Weights) -> None:
    """Normal with the given standard deviation, whatever the fan-in."""
    elementary.normal(rng, out)
    out *= np.float32(std)


INITS: dict[str, Callable[[np.random.Generator, Parameter, float, Weights], None]] = {
    "he": he,
    "glorot": glorot,
    "normal": normal,
}
