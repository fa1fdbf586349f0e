"""A configuration and its network for a data set."""

from dpcnn.config import Config
from dpcnn.data.shards import Manifest
from dpcnn.nn.network import Network


def fitted(config: Config, data: Manifest) -> tuple[Config, Network]:
    """A configuration with the mean and the deviation of a data set, where its layers lack them, and its network.

    Raises:
        ConfigError: the loss is for other targets, or the layers do not fit the images, the classes or each other.
    """
    config.make_loss().check_data(data.targets, data.classes, data.name)
    config = config.measured(data.mean, data.deviation)
    return config, config.network(data.image_shape, data.classes)
