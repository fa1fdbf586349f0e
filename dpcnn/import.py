"""Bring a net in: python -m dpcnn.import FILE.safetensors"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array, Shape
from dpcnn.base.fields import MOST_NAME, FieldError, Table, load_json
from dpcnn.base.files import open_plain
from dpcnn.base.numerics import fingerprint
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.config import Config, from_dict, read_recipe
from dpcnn.errors import CheckpointError, ConfigError, LaunchError, not_installed
from dpcnn.interop.torch_layout import twins
from dpcnn.parallel.comm import Alone
from dpcnn.runs.checkpoint import MOST_SIDE, Checkpoint, weights_sha256, write
from dpcnn.runs.progress import Cursor


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: bring_in(comm, argv))


def bring_in(comm: Alone, argv: Sequence[str] | None) -> int:
    """Write the checkpoint on rank 0; the other ranks of ``comm`` wait to hear whether it went well."""
    parser = Parser(prog="dpcnn.import", description=__doc__)
    parser.add_argument("file", type=Path, help="safetensors, as dpcnn.export writes them, or of a PyTorch model")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="the network, where the file does not tell")
    parser.add_argument("--image-shape", default="28,28,1", metavar="H,W,C", help="then also this (default 28,28,1)")
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="and this (default 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the checkpoint (default the file's name .h5, here)")
    with comm.together():
        options = parse(parser, argv, comm)
    with comm.together():
        if comm.rank == 0:
            out = options.out or Path(f"{options.file.stem}.h5")
            if out.exists() or out.is_symlink():
                raise CheckpointError(f"{out}: exists; give another --out, or delete it")
            told = None
            if options.recipe:
                told = Told(read_recipe(options.recipe), sides(options.image_shape), options.classes, 0)
            checkpoint = from_safetensors(options.file, told)
            write(out, checkpoint)
            print(f"{out}: {checkpoint.config.model}, weights {checkpoint.weights_sha256}")
    return DONE


@dataclass(frozen=True)
class Told:
    """What must be known of a net besides its tensors."""

    config: Config
    image_shape: Shape
    classes: int
    step: int


def from_safetensors(path: Path, told: Told | None = None) -> Checkpoint:
    """A checkpoint of the tensors in a file: to be evaluated, asked and exported; it has no optimizer's memory.

    Args:
        told: of the net; None: the file tells it, as those do that dpcnn.export has written.

    Raises:
        LaunchError: the package safetensors is not installed.
        CheckpointError: the file can't be read, or its tensors are not the network's.
        ConfigError: nobody tells the network, or it does not fit the images.
    """
    tensors, metadata = read_tensors(path)
    told = told or read_metadata(path, metadata)
    network = told.config.network(told.image_shape, told.classes)
    known = {twin.theirs: twin for twin in twins(network)}
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    expected = {name: twin.their_shape for name, twin in known.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path}: {name[:MOST_NAME]} is {found.get(name, 'absent')} there and {expected.get(name, 'absent')} "
                f"in {told.config.model}; give the --recipe that it was made with"
            )
    vector = network.flat({twin.ours: twin.from_torch(tensors[name]) for name, twin in known.items()})
    return Checkpoint(
        network.views(vector),
        {},
        Cursor(step=told.step),
        told.config,
        network.input_shape,
        network.classes,
        "",
        weights_sha256(vector),
        fingerprint(),
    )


def read_tensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]]:
    """The tensors of a file by name, without PyTorch's counters of batches, and its metadata.

    Raises:
        LaunchError: the package safetensors is not installed.
        CheckpointError: the file is not what it should be.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise LaunchError(not_installed("safetensors", "export")) from None
    try:
        open_plain(path).close()
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:  # NumPy lacks bfloat16
        raise CheckpointError(f"{path}: no safetensors file that can be read ({error})") from None
    tensors = {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
    for name, array in tensors.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise CheckpointError(f"{path}: {name}: expected floats, not {array.dtype}")
    return tensors, metadata


def read_metadata(path: Path, metadata: Mapping[str, str]) -> Told:
    """What a file that dpcnn.export has written tells of its net.

    Raises:
        CheckpointError: it is not understood.
        ConfigError: there is nothing.
    """
    if "dpcnn" not in metadata:
        raise ConfigError(f"{path}: does not tell its network; give --recipe")
    try:
        told = Table(load_json(metadata["dpcnn"]))
        return Told(
            from_dict(told.table("config").all(), "config.", whole=True),
            told.integers("image_shape", 3, least=1, most=MOST_SIDE),
            told.integer("classes", 1, MOST_SIDE),
            told.integer("step"),
        )
    except (FieldError, ConfigError) as error:
        raise CheckpointError(f"{path}: what it says of its network is not understood ({error})") from None


def sides(text: str) -> Shape:
    """The numbers of --image-shape."""
    words = text.split(",")
    if len(words) != 3 or not all(word.isdecimal() and 0 < int(word[:9]) <= MOST_SIDE for word in words):
        raise ConfigError(f"--image-shape: expected H,W,C such as 28,28,1, not {text}")
    return tuple(int(word) for word in words)


if __name__ == "__main__":
    sys.exit(main())
