"""Where a loss or gradient has become infinite, or not a number."""

from collections.abc import Sequence

from dpcnn.base.arrays import Vector
from dpcnn.data.dataset import Indices, Samples
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.tree import Interval, split_evenly


def divergence(
    comm: SerialComm,
    network: Network,
    parameters: Vector,
    samples: Samples,
    batch: Indices,
    microbatches: Sequence[Interval],
) -> str:
    """Where it is in a step whose loss or gradient is not finite, in words, the same on every rank of ``comm``.

    Each rank looks again at its microbatches, for the first layer whose weights or output are not finite.

    Args:
        batch: sample numbers of the step.
        microbatches: of each, (start, stop) within ``batch``.
    """
    bounds = split_evenly(len(microbatches), comm.size)
    layers = []
    for start, stop in microbatches[bounds[comm.rank] : bounds[comm.rank + 1]]:
        images, _ = samples.take(batch[start:stop])
        layers.append(network.first_not_finite(parameters, images))
    found = [layer for rank in comm.allgather_obj(layers) for layer in rank if layer]
    return f"the first layer with values that are not finite is {found[0]}" if found else "the gradient is not"
