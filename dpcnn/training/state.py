"""All that a run remembers: parameters, the optimizer's vectors, the average of the weights, and where it is.

Together with its configuration and data this decides the rest of the run. A checkpoint is a copy of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from dpcnn.base.numerics import check, fingerprint
from dpcnn.config import Config
from dpcnn.errors import CheckpointError, DivergenceError
from dpcnn.nn.network import Network, Vector
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exchange import EXCHANGES
from dpcnn.runs.checkpoint import Checkpoint, weights_sha256
from dpcnn.runs.progress import Progress
from dpcnn.training.drift import Hashes, check_drift, tensor_hashes
from dpcnn.training.update import Update


class State:
    """The state of a run, on every rank of ``comm``: each holds its part of the vectors.

    Attributes:
        params: the parameters, (network.size,) float32, the same on every rank.
        shard: the elements that this rank updates.
        update: the rule of the update, with its vectors of ``shard`` by name.
        progress: where the run is.
        exchange: which keeps ``params`` the same on all ranks.
    """

    def __init__(self, comm: SerialComm, config: Config, network: Network) -> None:
        check(config.numerics)
        self.comm, self.config, self.network, self.timer = comm, config, network, network.timer
        self.progress = Progress()
        self.exchange = EXCHANGES[config.exchange](comm, network.size, self.timer)
        self.params, self.shard = self.exchange.params, self.exchange.shard
        self.params[self.shard] = network.initialise(config.seed, config.init, config.init_std)[self.shard]
        self.exchange.publish()
        self.update = Update(config, network, self.params[self.shard], self.shard)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block within which ``params`` is the average of the weights, and the weights take its place.

        For a run without an average, a block like any other.
        """
        self._swap()
        yield
        self._swap()

    def _swap(self) -> None:
        if self.config.ema_decay:
            with self.timer("waiting"):
                self.comm.barrier()  # nobody reads the parameters any more
            parameters, other = self.params[self.shard], self.update.state["ema"]
            parameters[...], other[...] = other.copy(), parameters.copy()
            self.exchange.publish()

    def compare(self) -> Hashes:
        """The hashes of all parameters, which are the same on every rank.

        Raises:
            DriftError: on every rank, where they are not.
        """
        hashes = tensor_hashes(self.network.views(self.params)) if self.exchange.owns_copy else None
        by_rank = self.comm.allgather_obj(hashes)
        check_drift(by_rank, self.progress.step)
        of_first: Hashes = by_rank[0]
        return of_first

    def checkpoint(self, data: str) -> Checkpoint | None:
        """A checkpoint of the state, on rank 0; None elsewhere.

        Args:
            data: the checksum of the data set.

        Raises:
            DivergenceError: on rank 0, where the weights are not finite.
        """
        collected = {name: self.exchange.gather(shard) for name, shard in self.update.state.items()}
        vectors = {name: params for name, params in collected.items() if params is not None}
        if self.comm.rank:
            return None
        if not np.isfinite(self.params).all():
            raise DivergenceError(f"step {self.progress.step}: weights are not finite; try a smaller --lr")
        return Checkpoint(
            self.network.views(self.params),
            vectors,
            self.progress,
            self.config,
            self.network.input_shape,
            self.network.classes,
            data,
            weights_sha256(self.params),
            fingerprint(),
        )

    def restore(self, checkpoint: Checkpoint | None, steps_per_epoch: int, last_step: int) -> None:
        """Go on from a checkpoint, which rank 0 has read: the others pass None.

        Args:
            steps_per_epoch, last_step: of the run.

        Raises:
            CheckpointError: on every rank, where it is of another model, optimizer or run.
        """
        vectors: dict[str, Vector] = {}
        with self.comm.fail_together():
            if checkpoint:
                checkpoint.progress.check(steps_per_epoch)
                self._check(checkpoint)
                vectors = {"parameters": self.network.flat(checkpoint.parameters), **checkpoint.optimizer}
        for name, shard in {"parameters": self.params[self.shard], **self.update.state}.items():
            self.exchange.scatter(vectors.get(name), shard)
        self.exchange.publish()
        self._swap()  # a checkpoint's parameters are the average
        self.progress = Progress.from_dict(self.comm.broadcast_obj(checkpoint and asdict(checkpoint.progress)))
        self.progress.reopen(steps_per_epoch, last_step)

    def _check(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint's optimizer vectors against those of the run."""
        shapes = {name: params.shape for name, params in checkpoint.optimizer.items()}
        if shapes != dict.fromkeys(self.update.state, (self.network.size,)):
            raise CheckpointError(
                f"the checkpoint's optimizer holds {shapes}, expected {sorted(self.update.state)} of "
                f"({self.network.size},)"
            )
