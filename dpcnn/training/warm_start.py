"""A warm start: a new run whose parameters begin with those of another run's checkpoint (``--init-from``)."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.config import Config
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.folder import find_checkpoint


class WarmStart(NamedTuple):
    """The initial values of a run that starts from a checkpoint.

    Attributes:
        params: (network.size,) float32.
        sha256: the ``weights_sha256`` of the checkpoint.
        remark: a line that says which parameters it has given.
    """

    params: Vector
    sha256: str
    remark: str


def warm_start(comm: SerialComm, config: Config, network: Network) -> WarmStart:
    """Read the checkpoint ``config.init_from`` on rank 0, and share the initial values with all ranks.

    Raises:
        CheckpointError: on every rank; the checkpoint can't be read, or has other weights than before.
        ConfigError: on every rank; it has no parameter of the network, or not those of a frozen layer.
    """
    params, sha256, remark = np.empty(network.size, np.float32), "", ""
    with comm.fail_together():
        if comm.rank == 0:
            source = _read(config)
            params[...], remark = combine(source, config, network)
            sha256 = source.weights_sha256
    comm.broadcast(params)
    sha256, remark = comm.broadcast_obj([sha256, remark])
    return WarmStart(params, sha256, remark)


def source_recipe(path: str) -> Config:
    """The options of the run of a checkpoint, as a recipe for a run that starts from its parameters.

    They are without the limit of the steps, which belongs to that run, and without its own source.

    Raises:
        CheckpointError: the checkpoint can't be read.
    """
    return replace(_read_source(path).config, max_steps=0, init_from="", init_from_sha256="")


def _read_source(path: str) -> Checkpoint:
    try:
        return read(find_checkpoint(Path(path)))
    except CheckpointError as error:
        raise CheckpointError(f"--init-from {error}") from None


def _read(config: Config) -> Checkpoint:
    source = _read_source(config.init_from)
    if config.init_from_sha256 not in ("", source.weights_sha256):
        raise CheckpointError(
            f"--init-from {config.init_from}: has the weights {source.weights_sha256}, expected "
            f"{config.init_from_sha256} (init_from_sha256); give the checkpoint with these weights"
        )
    return source


def combine(source: Checkpoint, config: Config, network: Network) -> tuple[Vector, str]:
    """The initial values (network.size,), float32, and a line that says where they come from.

    They are the parameters of ``source`` wherever the name and the shape agree; the seed draws the others.

    Raises:
        ConfigError: no parameter agrees, or a parameter of a frozen layer does not.
    """
    params = network.initialise(config.seed, config.init, config.init_std)
    views, given = network.views(params), source.parameters
    taken = [name for name, view in views.items() if name in given and given[name].shape == view.shape]
    if not taken:
        raise ConfigError(
            f"--init-from {config.init_from}: no parameter has the name and the shape of one of this network; "
            "give a checkpoint of a similar network"
        )
    _check_frozen(network, taken, config.init_from)
    for name in taken:
        views[name][...] = given[name]
    new = list(dict.fromkeys(_layer(name) for name in views if name not in taken))
    anew = f"initialised anew: {', '.join(new)}" if new else "none initialised anew"
    return params, f"{len(taken)} of {len(views)} parameters taken over from {config.init_from}; {anew}"


def _check_frozen(network: Network, taken: Collection[str], path: str) -> None:
    for parameter, layer in zip(network.parameters, network.owners, strict=True):
        if layer.frozen and parameter.name not in taken:
            raise ConfigError(
                f"{_layer(parameter.name)}: freeze: --init-from {path} has no {parameter.name} of the shape "
                f"{parameter.shape}, so the layer would keep random values; delete freeze = true"
            )


def _layer(parameter: str) -> str:
    """The name of the layer of a parameter, from the full name of the parameter."""
    return parameter.rpartition(".")[0]
