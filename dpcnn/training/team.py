"""The team: the living ranks of a run, and all that depends on how many they are."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from dpcnn.base.arrays import Vector, all_finite
from dpcnn.base.numerics import fingerprint
from dpcnn.config import Config
from dpcnn.data.dataset import Samples
from dpcnn.errors import CheckpointError, DivergenceError
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exact import ExactExchange
from dpcnn.parallel.exchange import AllreduceExchange, Exchange
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import AVERAGE, Checkpoint, vector_names, weights_sha256
from dpcnn.runs.progress import Progress
from dpcnn.training.drift import Hashes, check_drift, tensor_hashes
from dpcnn.training.plan import Plan
from dpcnn.training.state import PARAMETERS, State, Vectors
from dpcnn.training.update import Update
from dpcnn.training.warm_start import WarmStart

EXCHANGES: dict[str, type[Exchange]] = {"exact": ExactExchange, "allreduce": AllreduceExchange}


def microbatch_sizes(config: Config, images: int) -> list[int]:
    """The images of each microbatch of most steps, in a training on so many images."""
    return [stop - start for start, stop in chunks(min(config.batch, images), config.microbatch)]


class Team:
    """The living ranks, the work of each, and the memory of a step. When a rank dies, the others make a new team.

    Attributes:
        state: the state that the team works on.
        new: whether the team has initialised it, because there was none, or a part of it is lost.
        exchange: which adds up gradients, and tells which elements this rank updates.
        update: the update of these elements.
    """

    def __init__(
        self,
        comm: SerialComm,
        config: Config,
        network: Network,
        images: int,
        state: State | None,
        warm: WarmStart | None = None,
        spare: bool = False,
    ) -> None:
        """Every living rank makes its own, from the last committed state; None: there is none yet.

        ``images`` is the number of images of the training.
        Then the parameters begin with the values of ``warm``; None: with those that the seed draws. ``spare``: whether
        a new state has a third set of vectors.
        """
        self.comm, self.config, self.network = comm, config, network
        sizes = microbatch_sizes(config, images)
        make = partial(EXCHANGES[config.exchange], comm, network.size, network.timer)
        self.exchange = make(state.elements if state else None, network.products, sizes)
        self.new = state is None or not self.exchange.whole
        if not self.exchange.whole:
            self.exchange = make(None, network.products, sizes)
        with comm.fail_together():  # a node may have too little memory
            self.state = self._initial(warm, spare) if state is None or self.new else state
            self.state.renew(self.exchange.node)
        self.shard = self.exchange.shard
        self.own = self.state.within(self.shard)
        self.update = Update(comm, config, network, self.shard, self.exchange.unique)

    def _initial(self, warm: WarmStart | None, spare: bool) -> State:
        """The state before the first step."""
        config, exchange = self.config, self.exchange
        state = State(vector_names(config), self.network.size, exchange.node, exchange.elements, spare)
        params, shard = state.now[PARAMETERS], exchange.shard
        if exchange.node.rank == 0:  # on each node: the same values, without messages
            if warm:
                params[...] = warm.params
            else:
                self.network.initialise(config.seed, config.init, config.init_std, out=params)
        exchange.node.barrier()
        if config.ema_decay:
            state.now[AVERAGE][state.within(shard)] = params[shard]
        return state

    def shards(self, vectors: Vectors) -> dict[str, Vector]:
        """This rank's elements of the vectors of a state."""
        return {name: vector[self.shard if name == PARAMETERS else self.own] for name, vector in vectors.items()}

    def weights(self) -> Vector:
        """The weights that are evaluated and saved, (network.size,): the parameters, or their average if there is one.

        The average is collected in the memory of the next step, where it stays until that step.
        """
        if not self.config.ema_decay:
            return self.state.now[PARAMETERS]
        average = self.state.next[PARAMETERS]
        average[self.shard] = self.state.now[AVERAGE][self.own]
        self.exchange.publish(average)
        return average

    def compare(self) -> Hashes:
        """The hashes of all parameters, which are the same on every rank; so are the other vectors of copies.

        Raises:
            DriftError: on every rank, where they are not.
        """
        hashes, tensors = None, self.network.views(self.state.now[PARAMETERS])
        if self.exchange.node.rank == 0:  # of those that share a copy
            others = {name: vector for name, vector in self.state.now.items() if name != PARAMETERS}
            hashes = tensor_hashes({**tensors, **(others if self.exchange.copied else {})})
        by_rank = self.comm.allgather_obj(hashes)
        check_drift(by_rank, self.state.progress.step)
        of_first: Hashes = by_rank[0]
        return {name: of_first[name] for name in tensors}

    def checkpoint(self, samples: Samples) -> Callable[[], Checkpoint] | None:
        """A function that makes a checkpoint of the state as it is now, on rank 0; None elsewhere.

        The function uses the vectors ``now`` of the state, which must not change until the checkpoint is written. A
        thread may call it; it raises DivergenceError where the vectors are not finite. The parameters of the checkpoint
        are the weights to use, and the parameters of a run with an average take the place of that.

        Args:
            samples: of the training.
        """
        vectors, progress = self._collect(), self.state.progress.copy()
        if self.comm.rank:
            return None
        weights = vectors.pop(PARAMETERS)
        if self.config.ema_decay:
            weights, vectors[AVERAGE] = vectors[AVERAGE], weights

        def make() -> Checkpoint:
            for name, vector in {"weights": weights, **vectors}.items():
                if not all_finite(vector):  # a checkpoint of it could not be read
                    what = "weights are" if name in ("weights", AVERAGE) else f"the optimizer's {name} is"
                    raise DivergenceError(f"step {progress.step}: {what} not finite; try a smaller --lr")
            return Checkpoint(
                self.network.views(weights),
                vectors,
                progress,
                self.config,
                self.network.input_shape,
                samples.manifest.class_names,
                samples.manifest.resize,
                samples.manifest.checksum,
                weights_sha256(weights),
                fingerprint(),
                samples.class_labels,
                samples.max_value,
            )

        return make

    @property
    def one_copy(self) -> bool:
        """Whether all ranks share one copy of the vectors."""
        return self.exchange.node.size == self.comm.size

    def _collect(self) -> dict[str, Vector]:
        """The state's vectors with all their elements, on rank 0; without copies if its node has all elements."""
        here = dict(self.state.now)
        if self.one_copy or self.exchange.copied:
            return here
        shards = self.shards(here)
        del shards[PARAMETERS]  # each node has all of them
        gathered = {name: self.exchange.gather(shard) for name, shard in shards.items()}
        return here | {name: vector for name, vector in gathered.items() if vector is not None}

    def restore(self, checkpoint: Checkpoint | None, plan: Plan) -> None:
        """Go on from a checkpoint, which rank 0 has read: the others pass None.

        Raises:
            CheckpointError: on every rank, where it is of another model, optimizer or run.
        """
        vectors: dict[str, Vector] = {}
        with self.comm.fail_together():
            if checkpoint:
                checkpoint.progress.check(plan.steps_per_epoch)
                self._check(checkpoint)
                vectors = {PARAMETERS: self.network.flat(checkpoint.parameters), **checkpoint.optimizer}
        if self.config.ema_decay and vectors:  # a checkpoint's parameters are the average
            vectors[PARAMETERS], vectors[AVERAGE] = vectors[AVERAGE], vectors[PARAMETERS]
        for name, shard in self.shards(self.state.now).items():
            self.exchange.scatter(vectors.get(name), shard)
        self.exchange.publish(self.state.now[PARAMETERS])
        self.state.progress = Progress.from_dict(self.comm.broadcast_obj(checkpoint and asdict(checkpoint.progress)))
        self.state.progress.reopen(plan.steps_per_epoch, plan.last_step)

    def _check(self, checkpoint: Checkpoint) -> None:
        """Hold a checkpoint's optimizer vectors against those of the run."""
        names = [name for name in self.state.now if name != PARAMETERS]
        shapes = {name: vector.shape for name, vector in checkpoint.optimizer.items()}
        if shapes != dict.fromkeys(names, (self.network.size,)):
            raise CheckpointError(
                f"the checkpoint's optimizer holds {shapes}, expected {sorted(names)} of ({self.network.size},)"
            )
