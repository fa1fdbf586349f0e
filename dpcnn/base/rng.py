"""Random numbers as a pure function of the seed, a purpose and indices.

The bit generator is the counter-based Philox-4x64 (Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011), so a stream needs no history, and no rank has a stream of its own.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from numpy.typing import NDArray

WEIGHTS = 1  # + parameter number
ORDER = 2  # + epoch
SAMPLES = 3  # + epoch; then, in the generator's counter, sample number and layer number
SHUFFLE = 4  # + split number: the order of a data set's samples, when it is made
HOLDOUT = 5  # the samples held back for validation
IMAGE = 2**32  # in place of a layer's number: a map of the image's plane
CROP, CHANGE = IMAGE + 1, IMAGE + 2  # the same for random resized crops, and for the other augmentation


def philox(seed: int, purpose: int, number: int) -> Philox:
    """The bit generator for ``number`` of ``purpose`` under ``seed``."""
    return Philox(SeedSequence((seed, purpose, number)))


def generator(seed: int, purpose: int, number: int) -> Generator:
    """A generator of distributions over :func:`philox`."""
    return Generator(philox(seed, purpose, number))


def permutation(seed: int, number: int, samples: int, purpose: int = ORDER) -> np.ndarray:
    """The order of epoch ``number``: ``0 .. samples-1``, sorted by a random key for each.

    Uses the raw Philox output, which NumPy promises never to change, and not
    ``Generator.permutation``, which may change.

    Returns:
        (samples,) int64.
    """
    keys = philox(seed, purpose, number).random_raw(samples)
    return np.argsort(keys, kind="stable")


class SampleRng(NamedTuple):
    """The random numbers of a batch: each sample has its own stream in each epoch.

    Attributes:
        seed: of the run.
        epoch: from 0.
        samples: (N,) the indices of the samples in the data set.
    """

    seed: int
    epoch: int
    samples: NDArray[Any]

    def bits(self, layer: int, count: int) -> NDArray[np.uint16]:
        """Uniform values (N, count) for the layer of this number: row n depends on sample n alone."""
        words = -(-count // 4)
        rows = np.empty((len(self.samples), words), np.uint64)
        source = philox(self.seed, SAMPLES, self.epoch)
        state: Any = source.state  # one generator set to each sample's counter: much faster than one per sample
        for row, sample in zip(rows, self.samples, strict=True):
            state["state"]["counter"][:] = 0, 0, sample, layer  # the lowest words count within the stream
            source.state = state
            row[:] = source.random_raw(words)
        return rows.astype("<u8", copy=False).view(np.uint16)[:, :count]
