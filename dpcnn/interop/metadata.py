"""The description of a network that goes with its weights in every exported file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpcnn import __version__
from dpcnn.base.arrays import Shape
from dpcnn.base.fields import FieldError, Table, load_json
from dpcnn.config import Config, from_dict
from dpcnn.data.classes import Names, parse_names
from dpcnn.data.pixels import BYTES, LEAST_WHITE, MOST_WHITE, WHITE
from dpcnn.data.shards import parse_resize
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.runs.checkpoint import MOST_SIDE, Checkpoint


@dataclass(frozen=True)
class Description:
    """A network without its weights.

    Attributes:
        config: the configuration, with the layers.
        image_shape: (H, W, C) of the images.
        class_names: the name of each class.
        resize: how a picture becomes an image for the network, see :data:`dpcnn.data.shards.RESIZE`.
        step: the number of steps that the weights were trained for.
        max_value: the value of white in the images; None: 255, they are uint8.
    """

    config: Config
    image_shape: Shape
    class_names: Names
    resize: str
    step: int
    max_value: float | None = None


def to_metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of an exported file: a JSON object under the name "dpcnn".

    It is a single entry because safetensors writes several entries in a random order, and the same checkpoint must
    give the same bytes.
    """
    values = {
        "version": __version__,
        "config": checkpoint.config.as_dict(),
        "image_shape": list(checkpoint.image_shape),
        "classes": checkpoint.classes,
        "class_names": list(checkpoint.class_names),
        "resize": checkpoint.resize,
        "max_value": checkpoint.max_value,
        "step": checkpoint.progress.step,
        "weights_sha256": checkpoint.weights_sha256,
    }
    return {"dpcnn": json.dumps(values)}


def white(checkpoint: Checkpoint) -> float:
    """The value of white in the images that an exported network takes; black is 0."""
    return WHITE[BYTES] if checkpoint.max_value is None else checkpoint.max_value


def from_metadata(path: Path, metadata: Mapping[str, str]) -> Description:
    """The description in the metadata of an exported file.

    Args:
        path: the file's path, for messages.

    Raises:
        CheckpointError: the description is damaged.
        ConfigError: there is no description.
    """
    if "dpcnn" not in metadata:
        raise ConfigError(f"{path}: does not describe its network; give --recipe")
    try:
        values = Table(load_json(metadata["dpcnn"]))
        return Description(
            from_dict(values.table("config").all(), "config.", whole=True),
            values.integers("image_shape", 3, least=1, most=MOST_SIDE),
            parse_names(values, values.integer("classes", 1, MOST_SIDE)),
            parse_resize(values),
            values.integer("step"),
            _max_value(values),
        )
    except (FieldError, ConfigError) as error:
        raise CheckpointError(f"{path}: its description of the network is not understood ({error})") from None


def _max_value(values: Table) -> float | None:
    """The value of white; files of older versions have none."""
    if "max_value" not in values or values.value("max_value") is None:
        return None
    return values.number("max_value", LEAST_WHITE, MOST_WHITE)
