"""The gradient of a microbatch: its samples, their augmentation, and the network."""

from typing import Any

from numpy.typing import NDArray

from dpcnn.base.arrays import Vector
from dpcnn.base.rng import SampleRng
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.nn.layer import Keep
from dpcnn.nn.network import Network


class MicrobatchGradient:
    """Computes gradients of the samples of a run.

    Attributes:
        samples: of the run.
        classifies: whether the network classifies them.
    """

    def __init__(self, config: Config, network: Network, samples: Samples) -> None:
        self._seed, self._network, self.samples = config.seed, network, samples
        self._augment = Augment(network.input_shape, config)
        self._loss = config.make_loss()
        self.classifies = "accuracy" in self._loss.metrics

    def read_ahead(self, indices: NDArray[Any]) -> None:
        """Let the system begin to read samples of the next step, if they are in files, while this one is computed."""
        with self._network.timer("data"):
            self.samples.read_ahead(indices)

    def __call__(
        self, params: Vector, epoch: int, indices: NDArray[Any], out: Vector, keep: Keep | None = None
    ) -> tuple[float, int]:
        """Write the gradient of the summed loss of some samples into ``out``, (network.size,).

        Args:
            keep: is given the factors of the gradients of linear layers.

        Returns:
            The summed loss, and the number of samples that are classified right.
        """
        with self._network.timer("data"):
            images, labels = self.samples.take(indices)
            rng = SampleRng(self._seed, epoch, indices)
            images = self._augment(images, rng)
        return self._network.gradient(params, images, labels, self._loss, out, rng, keep)
