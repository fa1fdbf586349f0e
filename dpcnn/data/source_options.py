"""The user's options for the source of a new data set."""

from dataclasses import dataclass

from dpcnn.data.classes import Names
from dpcnn.data.shards import CROP
from dpcnn.nn.losses import CLASSES

TEST_PART = 0.1
"""The part of the samples that are test samples, if the source does not say which are."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source.

    Attributes:
        names: of the classes; None: the source's own, or numbers.
        targets: the kind of the labels, one of :data:`dpcnn.nn.losses.TARGETS`.
        layout: "hwc" or "chw", the order of height, width and channels in arrays; None: it must be clear.
        test: the number of test samples, or, below 1, their fraction of all; None: see :data:`TEST_PART`.
        seed: draws the test samples; None: 0.
        resize: how a picture becomes an image of this set, see :data:`dpcnn.data.shards.RESIZE`.
        size: (H, W) of the images that pictures become.
        colour: "rgb" or "grey", of these images; None: "rgb".
        strict: whether a picture that can't be read is an error, and is not skipped.
        max_value: the value of white in arrays of uint16 or floats; None: see :data:`dpcnn.data.pixels.WHITE`.
    """

    names: Names | None = None
    targets: str = CLASSES
    layout: str | None = None
    test: float | None = None
    seed: int | None = None
    resize: str = CROP
    size: tuple[int, int] | None = None
    colour: str | None = None
    strict: bool = False
    max_value: float | None = None
