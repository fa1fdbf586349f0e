"""Networks as safetensors files, with PyTorch's names and layout of the parameters."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dpcnn.base.arrays import Array
from dpcnn.base.fields import MOST_NAME
from dpcnn.base.files import open_plain
from dpcnn.base.numerics import fingerprint
from dpcnn.errors import CheckpointError, LaunchError, not_installed
from dpcnn.interop.metadata import Description, from_metadata, to_metadata
from dpcnn.interop.torch_layout import Twin, torch_names
from dpcnn.runs.checkpoint import Checkpoint, weights_sha256
from dpcnn.runs.progress import Progress


def as_safetensors(checkpoint: Checkpoint) -> bytes:
    """The content of a safetensors file: each parameter as :func:`like_torch` gives it, and the metadata.

    Raises:
        LaunchError: the package safetensors is not installed.
    """
    try:
        from safetensors.numpy import save
    except ImportError:
        raise LaunchError(f"--format safetensors: {not_installed('safetensors', 'export')}") from None
    return bytes(save(like_torch(checkpoint), metadata=to_metadata(checkpoint)))


def like_torch(checkpoint: Checkpoint) -> dict[str, Array]:
    """The parameters with PyTorch's names and layout: see :mod:`dpcnn.interop.torch_layout`."""
    parameters = checkpoint.parameters
    return {twin.theirs: twin.to_torch(parameters[twin.ours]) for twin in torch_names(checkpoint.network())}


def from_safetensors(path: Path, description: Description | None = None) -> Checkpoint:
    """Make a checkpoint from the tensors in a file. It has no optimizer state, so it can't resume training.

    Args:
        description: the network; None: from the file's metadata, which every file of :func:`as_safetensors` has.

    Raises:
        LaunchError: the package safetensors is not installed.
        CheckpointError: the file can't be read, or its tensors do not match the network.
        ConfigError: nothing describes the network, or the network does not fit the images.
    """
    tensors, metadata = read_tensors(path)
    description = description or from_metadata(path, metadata)
    network = description.config.network(description.image_shape, len(description.class_names))
    pairs = torch_names(network)
    _check_shapes(path, tensors, pairs, description.config.model)
    params = network.flat({twin.ours: twin.from_torch(tensors[twin.theirs]) for twin in pairs})
    return Checkpoint(
        parameters=network.views(params),
        optimizer={},
        progress=Progress(step=description.step),
        config=description.config,
        image_shape=network.input_shape,
        class_names=description.class_names,
        resize=description.resize,
        data="",
        weights_sha256=weights_sha256(params),
        fingerprint=fingerprint(),
        max_value=description.max_value,
    )


def _check_shapes(path: Path, tensors: Mapping[str, Array], pairs: list[Twin], model: str) -> None:
    """Make sure that the file's tensors match the network in names and shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    actual = {name: tuple(array.shape) for name, array in tensors.items()}
    expected = {twin.theirs: twin.their_shape for twin in pairs}
    for name in [*expected, *actual]:
        if actual.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path}: {name[:MOST_NAME]} is {actual.get(name, 'absent')} in the file and "
                f"{expected.get(name, 'absent')} in {model}; give the --recipe of the file's network"
            )


def read_tensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]]:
    """The tensors of a file by name, without PyTorch's counters of batches, and the file's metadata.

    Raises:
        LaunchError: the package safetensors is not installed.
        CheckpointError: the file can't be read, or a tensor does not hold floats.
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
        hint = "; of an ONNX model, import the parameters, as safetensors" if path.suffix == ".onnx" else ""
        raise CheckpointError(f"{path}: can't be read as safetensors ({error}){hint}") from None
    tensors = {name: array for name, array in tensors.items() if not name.endswith("num_batches_tracked")}
    for name, array in tensors.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise CheckpointError(f"{path}: {name}: expected floats, not {array.dtype}")
        if not np.isfinite(array.astype(np.float32)).all():
            raise CheckpointError(f"{path}: {name}: not all values are finite in float32")
    return tensors, metadata
