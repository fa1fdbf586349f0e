"""The search for the origin of a loss or gradient that is infinite or not a number."""

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
    """Name the first values that are not finite in a step; the text is the same on every rank of ``comm``.

    Each rank searches its microbatches for the first layer whose parameters or output are not finite.

    Args:
        batch: (n,) the indices of the step's samples.
        microbatches: the (start, stop) of each within ``batch``.
    """
    bounds = split_evenly(len(microbatches), comm.size)
    layers = []
    for start, stop in microbatches[bounds[comm.rank] : bounds[comm.rank + 1]]:
        images, _ = samples.take(batch[start:stop])
        layers.append(network.first_not_finite(parameters, images))
    named = [layer for rank in comm.allgather_obj(layers) for layer in rank if layer]
    return f"the first layer with values that are not finite is {named[0]}" if named else "the gradient is not"
