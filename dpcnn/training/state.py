"""All that a run remembers: parameters, the optimizer's vectors, the average of the weights, and where it is.

Together with its configuration and data this decides the rest of the run. A checkpoint is a copy of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from dpcnn.base.numerics import fingerprint
from dpcnn.config import Config
from dpcnn.errors import CheckpointError, DivergenceError
from dpcnn.nn.network import Network, Vector
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.exchange import EXCHANGES
from dpcnn.runs.checkpoint import Checkpoint, weights_sha256
from dpcnn.runs.progress import Cursor
from dpcnn.training.drift import Hashes, check_drift, tensor_hashes
from dpcnn.training.update import Update


class State:
    """The state of a run, on every rank of ``comm``: each holds its part of the vectors.

    Attributes:
        vector: the parameters, (network.size,) float32, the same on every rank.
        part: the elements that this rank updates.
        update: the rule of the update, with its vectors of ``part`` by name.
        cursor: where the run is.
        exchange: which keeps ``vector`` the same on all ranks.
    """

    def __init__(self, comm: Alone, config: Config, network: Network) -> None:
        self.comm, self.config, self.network, self.spans = comm, config, network, network.spans
        self.cursor = Cursor()
        self.exchange = EXCHANGES[config.exchange](comm, network.size, self.spans)
        self.vector, self.part = self.exchange.vector, self.exchange.part
        self.vector[self.part] = network.initialise(config.seed, config.init, config.init_deviation)[self.part]
        self.exchange.share()
        self.update = Update(config, network, self.vector[self.part], self.part)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block within which ``vector`` is the average of the weights, and the weights take its place.

        For a run without an average, a block like any other.
        """
        self._swap()
        yield
        self._swap()

    def _swap(self) -> None:
        if self.config.average:
            with self.spans("waiting"):
                self.comm.barrier()  # nobody reads the parameters any more
            parameters, other = self.vector[self.part], self.update.state["average"]
            parameters[...], other[...] = other.copy(), parameters.copy()
            self.exchange.share()

    def compare(self) -> Hashes:
        """The hashes of all parameters, which are the same on every rank.

        Raises:
            DriftError: on every rank, where they are not.
        """
        hashes = tensor_hashes(self.network.views(self.vector)) if self.exchange.owns_copy else None
        by_rank = self.comm.allgather_obj(hashes)
        check_drift(by_rank, self.cursor.step)
        of_first: Hashes = by_rank[0]
        return of_first

    def checkpoint(self, data: str) -> Checkpoint | None:
        """A checkpoint of the state, on rank 0; None elsewhere.

        Args:
            data: the checksum of the data set.

        Raises:
            DivergenceError: on rank 0, where the weights are not finite.
        """
        collected = {name: self.exchange.collect(part) for name, part in self.update.state.items()}
        vectors = {name: vector for name, vector in collected.items() if vector is not None}
        if self.comm.rank:
            return None
        if not np.isfinite(self.vector).all():
            raise DivergenceError(f"step {self.cursor.step}: weights are not finite; try a smaller --lr")
        return Checkpoint(
            self.network.views(self.vector),
            vectors,
            self.cursor,
            self.config,
            self.network.input_shape,
            self.network.classes,
            data,
            weights_sha256(self.vector),
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
        with self.comm.together():
            if checkpoint:
                checkpoint.cursor.check(steps_per_epoch)
                self._check(checkpoint)
                vectors = {"parameters": self.network.flat(checkpoint.parameters), **checkpoint.optimizer}
        for name, part in {"parameters": self.vector[self.part], **self.update.state}.items():
            self.exchange.spread(vectors.get(name), part)
        self.exchange.share()
        self._swap()  # a checkpoint's parameters are the average
        self.cursor = Cursor.from_dict(self.comm.broadcast_obj(checkpoint and asdict(checkpoint.cursor)))
        self.cursor.reopen(steps_per_epoch, last_step)

    def _check(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint's optimizer vectors against those of the run."""
        shapes = {name: vector.shape for name, vector in checkpoint.optimizer.items()}
        if shapes != dict.fromkeys(self.update.state, (self.network.size,)):
            raise CheckpointError(
                f"the checkpoint's optimizer holds {shapes}, expected {sorted(self.update.state)} of "
                f"({self.network.size},)"
            )
