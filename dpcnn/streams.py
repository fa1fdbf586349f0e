"""Randomness as a pure function: every stream is named by the seed, its purpose, and numbers.

The bit generator is the counter-based Philox-4x64 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), so a stream needs no history and no rank has one of its own.
"""

import numpy as np
from numpy.random import Generator, Philox, SeedSequence

WEIGHTS = 1  # + parameter number
ORDER = 2  # + epoch


def philox(seed: int, purpose: int, number: int) -> Philox:
    """The bit generator for ``number`` of ``purpose`` under ``seed``."""
    return Philox(SeedSequence((seed, purpose, number)))


def generator(seed: int, purpose: int, number: int) -> Generator:
    """A generator of distributions over :func:`philox`."""
    return Generator(philox(seed, purpose, number))


def permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    """The order of an epoch: ``0 .. samples-1`` sorted by a random key for each.

    Built on the raw Philox output, which NumPy promises never to change, rather than on
    ``Generator.permutation``, which it may.

    Returns:
        (samples,) int64.
    """
    keys = philox(seed, ORDER, epoch).random_raw(samples)
    return np.argsort(keys, kind="stable")
