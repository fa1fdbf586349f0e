"""Arrays of the first layer with weights: its filters, and its output for an image."""

from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.data.dataset import load
from dpcnn.errors import ConfigError
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.reporting.figures import shades_of
from dpcnn.reporting.filters import draw_filters, draw_maps
from dpcnn.runs.checkpoint import Checkpoint


def read_test_image(data: Path, number: int) -> Array:
    """The image (1, H, W, C), uint8, of a test sample.

    Args:
        data: the folder of the data set.
        number: the sample's number, from 0.

    Raises:
        ConfigError: there is no sample of this number.
        DataError: the data set can't be read.
    """
    samples = load(data, "test", SerialComm())
    if not 0 <= number < len(samples):
        raise ConfigError(f"--sample: must be below {len(samples)}, not {number}")
    image, _ = samples.take(np.array([number]))
    return image


def draw_first_layer(checkpoint: Checkpoint, image: Array, out: Path, kind: str = "") -> list[str]:
    """Draw the first layer's filters and its output for an image, before and after training.

    Args:
        image: (1, H, W, C).
        out: the folder of the pictures, ``filters`` and ``maps``.
        kind: the ending of the only files; empty: .png and .svg.

    Returns:
        A line per picture, with its files or the reason why it was not drawn.
    """
    config = checkpoint.config
    network = config.network(image.shape[1:], checkpoint.classes)  # the images of another data set may be larger
    first = network.initialise(config.seed, config.init, config.init_std)
    (before, map_before), (after, map_after) = (
        first_layer(network, params, image) for params in (first, network.flat(checkpoint.parameters))
    )
    if before is None or after is None:
        return ["no filters drawn: the filters of the first layer with parameters do not have the shape of an image"]
    lines = [draw_filters(before, after, out / f"filters{kind}")]
    if map_before is not None and map_after is not None:
        lines.append(draw_maps(image[0], map_before, map_after, shades_of(checkpoint.resize), out / f"maps{kind}"))
    return lines


def first_layer(network: Network, params: Vector, image: Array) -> tuple[Array | None, Array | None]:
    """The filters of the first layer with weights, and its output (h, w, F) for an image (1, H, W, C).

    The filters of a linear layer of all pixels have the shape of the image. None: not a picture.
    """
    H, W, C = network.input_shape
    for _, weights, output in network.outputs(params, image):
        if "w" in weights and weights["w"].ndim == 4:
            return _picture(weights["w"]), output[:, :, 0].copy()
        if weights:
            whole = "w" in weights and weights["w"].ndim == 2 and len(weights["w"]) == H * W * C
            return (_picture(weights["w"].reshape(H, W, C, -1)) if whole else None), None
    raise AssertionError("every network has weights")


def _picture(weights: Array) -> Array:
    """Filters (h, w, C, F) as pictures: in colour (h, w, F, 3) if C is 3, otherwise their channels' mean (h, w, F)."""
    return weights.transpose(0, 1, 3, 2) if weights.shape[2] == 3 else weights.mean(axis=2)
