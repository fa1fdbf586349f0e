"""Class activation maps: where in an image a network finds its class.

They exist for networks that end in global average pooling and one linear layer: Zhou et al., "Learning deep features
for discriminative localization" (2016), section 2.
"""

from pathlib import Path
from typing import Any

import numpy as np

from dpcnn.base.arrays import Array, Vector
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layers import Dropout, Linear
from dpcnn.nn.network import Network
from dpcnn.nn.pooling import GlobalAvgPool
from dpcnn.reporting.figures import new_figure, picture, save, shades_of, short, show
from dpcnn.reporting.mistakes import worst_mistakes
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.training.examination import Examination

COLUMNS = 4
"""The largest number of mistakes, and of classes, whose maps are drawn."""


@picture
def draw_activation_maps(checkpoint: Checkpoint, examination: Examination, stem: Path) -> str:
    """Draw some images, and the map of the predicted class over each, to STEM.png and STEM.svg.

    They are the worst mistakes, and the best image of each of the first classes: see :func:`best_of_classes`.

    Returns:
        A line with the names of the files, or with the reason why there are none.
    """
    answers, samples = examination.answers, examination.samples
    network = checkpoint.network()
    if averaged_layer(network) is None:
        return "no class activation maps drawn: the network does not end in global average pooling and a linear layer"
    groups = [group for group in (worst_mistakes(answers, COLUMNS), best_of_classes(examination)) if len(group)]
    figure = new_figure(width=1.1 * COLUMNS, height=2.4 * len(groups))
    params = network.flat(checkpoint.parameters)
    grid = figure.subplots(2 * len(groups), COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for group, above, below in zip(groups, grid[::2], grid[1::2], strict=True):
        for number, upper, lower in zip(group, above, below, strict=False):
            image, _ = samples.take(examination.indices[[number]])
            values = activation_map(network, params, image, answers.predicted[number])
            _draw(upper, lower, image[0], values, shades_of(examination.resize))
            upper.set_title(_title(examination, number), fontsize=7)
    return save(figure, stem, "class activation maps")


def averaged_layer(network: Network) -> int | None:
    """The number of the layer whose output is averaged over all pixels for the last layer, a linear one.

    Dropout may lie between. None: the network does not end so, or the output has only one pixel.
    """
    number = len(network.layers) - 1
    if not isinstance(network.layers[number], Linear):
        return None
    for kind in (Linear, GlobalAvgPool):
        while isinstance(network.layers[number], Dropout):
            number = network.sources[number][0]
        if not isinstance(network.layers[number], kind):
            return None
        (number,) = network.sources[number]
        if number == IMAGES:
            return None
    height, width, _ = network.shapes[number]
    return number if height * width > 1 else None


def activation_map(network: Network, params: Vector, image: Array, predicted: int) -> Array:
    """The class activation map (h, w) of a class for an image: equation 2 of Zhou et al. (2016).

    The mean of the map, plus the class's bias if there is one, is the class's output of the network.

    Args:
        network: one that has an :func:`averaged_layer`.
        params: (size,) parameters.
        image: (1, H, W, C).
        predicted: the class.
    """
    averaged = averaged_layer(network)
    for number, (_, weights, output) in enumerate(network.outputs(params, image)):
        if number == averaged:
            features = output[:, :, 0].copy()  # (h, w, C)
        if number == len(network.layers) - 1:
            of_class = weights["w"][:, predicted]  # (C,)
    values: Array = features @ of_class
    return values


def best_of_classes(examination: Examination) -> Array:
    """For each of the first classes that have one, the number of the right answer with the smallest loss."""
    answers = examination.answers
    right = np.flatnonzero(answers.correct)
    ordered = right[np.argsort(answers.losses[right], kind="stable")]
    _, first = np.unique(answers.labels[ordered], return_index=True)
    best: Array = ordered[first[:COLUMNS]]
    return best


def _draw(upper: Any, lower: Any, image: Array, values: Array, shades: str) -> None:
    """Draw an image, and below it the same image in grey under a map, scaled from its minimum to its maximum."""
    height, width = image.shape[:2]
    edges = (-0.5, width - 0.5, height - 0.5, -0.5)  # left, right, bottom, top
    show(upper, image, shades)
    show(lower, image.mean(axis=-1, keepdims=True), shades)
    lower.imshow(values, cmap="jet", alpha=0.5, interpolation="bilinear", extent=edges)


def _title(examination: Examination, number: int) -> str:
    """The name of a sample's class, and of the predicted one if it is another."""
    names, answers = examination.class_names, examination.answers
    right, predicted = answers.labels[number], answers.predicted[number]
    return short(names[right]) + ("" if right == predicted else f"\nas {short(names[predicted])}")
