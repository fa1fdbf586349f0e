"""Draw runs: python -m dpcnn.plot RUN [RUN...]"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.data.dataset import find_data, load
from dpcnn.errors import ConfigError
from dpcnn.nn.network import Network, Vector
from dpcnn.parallel.comm import Alone
from dpcnn.reporting.figures import draw_curves, draw_filters, draw_maps
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import RunFolder, find_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: plot(comm, argv))


def plot(comm: Alone, argv: Sequence[str] | None) -> int:
    """Draw on rank 0; the other ranks of ``comm`` wait to hear whether it went well."""
    parser = Parser(prog="dpcnn.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--filters", action="store_true", help="also the first layer's filters and what it makes of a digit"
    )
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="number of the test sample for that (default 0)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default the first run's folder)")
    with comm.together():
        options = parse(parser, argv, comm)
    with comm.together():
        if comm.rank == 0:
            for folder in options.runs:
                if not RunFolder(folder).metrics.is_file():
                    raise ConfigError(f"{folder}: no run's folder: it has no metrics.jsonl")
            out = options.out or options.runs[0]
            out.mkdir(parents=True, exist_ok=True)
            name = "curves" if len(options.runs) == 1 else "compared"
            print(draw_curves(options.runs, out / name))
            if options.filters:
                checkpoint = read(find_checkpoint(options.runs[0]))
                samples = load(find_data(checkpoint.config.data), "test", Alone())
                if not 0 <= options.sample < len(samples):
                    raise ConfigError(f"--sample: must be below {len(samples)}, not {options.sample}")
                image, _ = samples.take(np.array([options.sample]))
                for line in draw_first_layer(checkpoint, image, out):
                    print(line)
    return DONE


def draw_first_layer(checkpoint: Checkpoint, image: NDArray[Any], out: Path) -> list[str]:
    """Draw the first layer with weights, before and after training, and what it makes of an image (1, H, W, C)."""
    config, network = checkpoint.config, checkpoint.network()
    first = network.initialise(config.seed, config.init, config.init_deviation)
    (before, map_before), (after, map_after) = (
        first_layer(network, vector, image) for vector in (first, network.flat(checkpoint.parameters))
    )
    lines = [draw_filters(before, after, out / "filters")]
    if map_before is not None and map_after is not None:
        lines.append(draw_maps(image[0].mean(axis=-1), map_before, map_after, out / "maps"))
    return lines


def first_layer(network: Network, vector: Vector, image: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The filters (h, w, F) of the first layer with weights, and its output for an image (h, w, F).

    A linear layer's filters have the shape of the image, and its output none that could be drawn: None.
    """
    for _, weights, output in network.outputs(vector, image):
        if "w" in weights and weights["w"].ndim == 4:
            return weights["w"].mean(axis=2), output[:, :, 0].copy()
        if "w" in weights:
            H, W, C = network.input_shape
            return weights["w"].reshape(H, W, C, -1).mean(axis=2), None
    raise AssertionError("every network has weights")


if __name__ == "__main__":
    sys.exit(main())
