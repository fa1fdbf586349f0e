"""Show the layers, parameters, operations and memory of a network: dpcnn summary RECIPE"""

import re
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from dpcnn.base.arrays import Shape
from dpcnn.base.text import text
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.config import Config
from dpcnn.data.augment import augmentations
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import read_manifest
from dpcnn.errors import ConfigError
from dpcnn.flags import add_import
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(command, make_parser, argv, SerialComm())


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn summary", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE", help="the name of a recipe, or a TOML file")
    parser.add_argument("--data", metavar="NAME|DIR", help="a data set in place of the recipe's")
    parser.add_argument("--images", metavar="HxWxC", help="the shape of the images (default: that of the data set)")
    parser.add_argument("--classes", type=int, metavar="N", help="the number of classes with --images (default 10)")
    add_import(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> int:
    """Print the table of the layers, the totals and the augmentation."""
    config = read_recipe(options.recipe)
    if options.data is not None:
        config = replace(config, data=options.data)
    shape, classes = images_and_classes(config, options)
    network = connected(config, shape, classes, given=bool(options.images))
    print(f"images of {'x'.join(map(str, shape))}, {classes:,} classes\n")
    print(text(("layer", "inputs", "output", "parameters", "MFLOP"), [*rows(network)]))
    memory = network.memory(config.microbatch) / 1e6
    print(
        f"\n{network.counted}, {4 * network.size / 1e6:.1f} MB; "
        f"{network.flops / 1e6:,.1f} MFLOP per image and gradient; "
        f"about {memory:,.0f} MB per rank for a microbatch of {config.microbatch} images"
    )
    print(f"augmentation of the training images: {augmentations(config)}")
    return DONE


def connected(config: Config, shape: Shape, classes: int, given: bool) -> Network:
    """The network for images of this shape.

    Args:
        given: whether the user has given the shape.

    Raises:
        ConfigError: the layers do not fit it.
    """
    ones = (1.0,) * shape[-1]  # in place of the mean and deviation of the data, which no figure here depends on
    try:
        return config.measured(ones, ones).network(shape, classes)
    except ConfigError as error:
        advice = "" if given else f" (images of {config.data}; others: --data NAME, or --images HxWxC --classes N)"
        raise ConfigError(f"{error}{advice}") from None


def images_and_classes(config: Config, options: Namespace) -> tuple[Shape, int]:
    """The shape (H, W, C) of the images and the number of classes, as given or as in the data set.

    Raises:
        ConfigError: the shape has another form.
        DataError: the data set is not there.
    """
    classes = 10 if options.classes is None else options.classes
    if not options.images:
        if options.classes is not None:
            raise ConfigError("--classes: needs --images, the shape of other images than those of the recipe's data")
        manifest = read_manifest(find_data(config.data))
        return manifest.image_shape, manifest.classes
    if options.data is not None:
        raise ConfigError("--images: not with --data, which has images of its own shape; drop one")
    if not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4}){2}", options.images):
        raise ConfigError(f"--images: expected height, width and channels, as in 32x32x3, not {options.images!r}")
    if not 1 <= classes <= 65_535:
        raise ConfigError(f"--classes: must be from 1 to 65535, not {classes}")
    return tuple(map(int, options.images.split("x"))), classes


def rows(network: Network) -> list[tuple[str, ...]]:
    """For each layer: name, inputs, output, learned parameters, and millions of operations forward per image."""
    names = {IMAGES: "images", **dict(enumerate(network.names))}
    return [
        (
            name,
            ", ".join(names[source] for source in sources),
            " x ".join(map(str, shape)),
            f"{layer.learned:,}",
            f"{2 * layer.multiplications / 1e6:.2f}",
        )
        for name, layer, sources, shape in zip(
            network.names, network.layers, network.sources, network.shapes, strict=True
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
