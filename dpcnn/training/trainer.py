"""The training loop.

The loop does one action after another: a step, an evaluation, a line of the record, a checkpoint. Each is a
transaction of all living ranks (:mod:`dpcnn.parallel.survival`). An action reads the committed state, writes memory
that nobody needs if it fails, and returns what to do once all ranks have finished it. So the state changes on all
ranks, or on none.
"""

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import Vector
from dpcnn.base.numerics import check
from dpcnn.base.rng import SampleRng, permutation
from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.data.holdout import hold_out
from dpcnn.errors import DivergenceError
from dpcnn.nn.network import Network
from dpcnn.optim.clipping import squares
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import SHARD_BLOCK
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import Checkpoint, read, weights_sha256
from dpcnn.runs.console import Reporter
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Metrics, Progress
from dpcnn.runs.record import Record
from dpcnn.training.divergence import divergence
from dpcnn.training.early_stopping import out_of_patience
from dpcnn.training.evaluation import evaluate
from dpcnn.training.state import PARAMETERS, State
from dpcnn.training.step import Decision, Sums, decide
from dpcnn.training.team import Team

STEP_EVENTS = 10  # lines of metrics.jsonl an epoch, besides the epoch's own

T = TypeVar("T")
Commit = Callable[[], None]
"""What to do when all ranks have finished an action."""


class Trainer:
    """Trains a network on the ranks of a communicator; every rank makes one and calls :meth:`fit`.

    Attributes:
        team: the living ranks, and what depends on their number.
        state: all that the run remembers.
        progress: where the run is.
        record: the run's record.
        weights_sha256: of the final weights; empty until the run's end.
        timer: where this rank's time goes.
        waited_for: for each rank, by its number at the start, seconds that others have waited for it; the same on every
            rank.
    """

    def __init__(
        self,
        comm: SerialComm,
        config: Config,
        network: Network,
        samples: Samples,
        run: RunFolder,
        reporter: Reporter,
        stop: Stop | None = None,
        test: Samples | None = None,
        tensorboard: bool = False,
    ) -> None:
        """``stop`` says when to end before the run's end; ``test`` samples are evaluated after each epoch."""
        check(config.numerics)
        self.comm, self.config, self.network, self.samples, self.test = comm, config, network, samples, test
        self.run, self.reporter, self.stop = run, reporter, stop or Stop()
        self.record = Record(run, reporter, tensorboard)
        self.holdout = hold_out(samples.labels, config.validation, config.holdout, config.seed)
        self.training = len(self.holdout.training)
        self.steps_per_epoch = math.ceil(self.training / config.batch)
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or 2**63)
        self.last_epoch = math.ceil(self.last_step / self.steps_per_epoch)
        self.augment = Augment(network.input_shape, config.shift, config.rotation, config.zoom, config.elastic)
        self.timer, self.loss = network.timer, config.make_loss()
        self.waited_for, self._waited = np.zeros((2, max(comm.members) + 1))
        self.min_ranks = 1
        self.origin: Path | None = None
        self._hosts = dict(zip(comm.members, comm.allgather_obj(platform.node()), strict=True))
        self._order: tuple[int, NDArray[Any]] = -1, np.empty(0, np.int64)
        self._size_of_log = self._losses_noted = 0
        self._stopping, self._over, self.weights_sha256 = False, False, ""
        self._committed: State | None = None
        self.assemble()
        self._adopt()

    # The loop: all that it decides, it decides by the committed state, which is the same on every rank

    def fit(self) -> bool:
        """Train until the run's end, or until ``stop`` says so on any rank.

        Returns:
            Whether the end was reached; if not, a checkpoint of the last step is there.

        Raises:
            DivergenceError: on every rank, before the parameters are touched.
            CheckpointError: on every rank.
        """
        left = self.images(self.last_step) - self.images(self.progress.step)
        self.reporter.begin(self.progress, self.config.epochs, left)
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by the step itself, and named
                while not self._over:
                    commit = self.transact(self.next_action)
                    commit()
        finally:
            self.reporter.end()
        return not self._stopping

    def transact(self, action: Callable[[], T]) -> T:
        """Do an action on all living ranks: see :meth:`dpcnn.parallel.comm.SerialComm.transact`."""

        def begin() -> T:
            self._size_of_log = self.reporter.size
            return action()

        result = self.comm.transact(begin, self.timer)
        self.reporter.commit(self._size_of_log)
        return result

    def next_action(self) -> Commit:
        """Do what the state asks for; the same on every rank."""
        progress = self.progress
        if self.state is not self._committed:
            return self._adopt
        if len(self.comm.losses) > self._losses_noted:
            return self._note_loss
        if len(progress.events) > self.record.shown:
            return self.write_record()
        if self._to_compare:
            return self.check_drift()
        if self._to_save:
            return self.save()
        if self._stopping or self.weights_sha256:
            return self._end
        if progress.epochs >= self.last_epoch or self._out_of_patience:
            return self.end_run()
        if progress.step >= min((progress.epochs + 1) * self.steps_per_epoch, self.last_step):
            return self.finish_epoch()
        return self.train_step()

    def assemble(self) -> None:
        """Make the team of the living ranks. If a part of the state is lost, they go back to the last checkpoint."""
        if self._over:
            return  # all is written but for a few lines
        with self.timer("recovery"):
            self.team = Team(self.comm, self.config, self.network, self._committed)
            if self.team.new and self._committed:
                self._restore_last()
            unique = self.team.exchange.unique
            blocks = max(self.comm.allgather_obj(math.ceil((unique.stop - unique.start) / SHARD_BLOCK)))
            self._blocks = blocks if self.config.max_grad_norm else 0

    def _restore_last(self) -> None:
        checkpoint = None
        with self.comm.fail_together():
            if self.comm.rank == 0 and (path := self.run.newest() or self.origin):
                checkpoint = read(path)
        if self.comm.broadcast_obj(checkpoint is not None):
            self.team.restore(checkpoint, self.steps_per_epoch, self.last_step)

    def _adopt(self) -> None:
        """Go on from the state of the team."""
        self._committed = self.state
        self._to_compare, self._to_save, self.weights_sha256 = False, False, ""
        self._out_of_patience = out_of_patience(self.progress, self.config)
        self.record.restart(self.progress)

    def _note_loss(self) -> None:
        """Put into the record who has died; with too few ranks left, stop."""
        loss = self.comm.losses[self._losses_noted]
        self._losses_noted += 1
        lost = [f"rank {number} on {self._hosts.get(number, 'an unknown host')}" for number in loss.ranks]
        self.progress.events.append(
            {
                "event": "death",
                "step": self.progress.step,
                "lost": lost,
                "ranks": loss.left,
                "seconds": round(loss.seconds, 3),
            }
        )
        if loss.left < self.min_ranks:
            self.stop.ask(f"fewer than {self.min_ranks} ranks are left")
            self._stopping = self._to_save = True

    def end_run(self) -> Commit:
        """Say why the run ends before its last epoch, if it does; record its end."""
        with self.writing("report"):
            if self._out_of_patience and self.progress.epochs < self.last_epoch:
                self.reporter.say(self._out_of_patience)
        sha256, best = weights_sha256(self.team.weights()), self.progress.best(self.config.monitor) or {}

        def commit() -> None:
            self.weights_sha256 = sha256
            self.progress.events.append(
                {
                    "event": "end",
                    "steps": self.progress.step,
                    "seconds": round(self.progress.seconds, 3),
                    "weights_sha256": sha256,
                    **{f"best_{key}": best[key] for key in ["validation_accuracy"] if key in best},
                }
            )

        return commit

    def _end(self) -> None:
        self._over = True

    # The actions

    def train_step(self) -> Commit:
        """One step of every rank: gradients, their sum, one decision, one update."""
        started = time.perf_counter()
        within = self.progress.step % self.steps_per_epoch
        batch = self.order()[within * self.config.batch : (within + 1) * self.config.batch]
        microbatches = chunks(len(batch), self.config.microbatch)
        team, shard, found = self.team, self.team.shard, list[tuple[float, int]]()

        def microbatch_gradient(number: int, out: Vector) -> None:
            found.append(self.microbatch_gradient(batch[slice(*microbatches[number])], out))

        gradient = team.exchange.sum(len(microbatches), microbatch_gradient)
        means = team.update.take_running_means(self.params[shard], gradient, len(batch))
        decision = self._decide(gradient, found, len(microbatches), len(batch))
        if not decision.finite:
            where = divergence(self.comm, self.network, self.params, self.samples, batch, microbatches)
            raise DivergenceError(
                f"step {self.progress.step + 1}, epoch {self.progress.epochs + 1}: the loss is not finite; {where}; "
                f"the last checkpoint stays as it was; try a smaller --lr than {self.config.lr:g}"
            )
        rate, step, state = self.rate(self.progress.step), self.progress.step + 1, self.state
        with self.timer("optimizer"):
            now, after = team.shards(state.now), team.shards(state.next)
            team.update(now, after, gradient, step, rate, decision.norm, len(batch), means)
        team.exchange.fetch(state.next[PARAMETERS])

        def commit() -> None:
            state.commit()
            self._advance(decision, time.perf_counter() - started, rate)

        return commit

    def order(self) -> NDArray[Any]:
        """The training samples of the running epoch by their numbers, in the order of training."""
        epoch = self.progress.epochs
        if self._order[0] != epoch:
            self._order = epoch, self.holdout.training[permutation(self.config.seed, epoch, self.training)]
        return self._order[1]

    def microbatch_gradient(self, indices: NDArray[Any], out: Vector) -> tuple[float, int]:
        """The gradient of the summed loss of these samples, into ``out``; returns that loss, and how many are right."""
        with self.timer("data"):
            images, labels = self.samples.take(indices)
            rng = SampleRng(self.config.seed, self.progress.epochs, indices)
            images = self.augment(images, rng)
        return self.network.gradient(self.params, images, labels, self.loss, out, rng)

    def _decide(self, gradient: Vector, found: list[tuple[float, int]], microbatches: int, count: int) -> Decision:
        """What all ranks conclude from what each has found; the norm is worked out where clipping asks for it."""
        unique = gradient[self.team.exchange.unique] if self._blocks else gradient[:0]
        sums = Sums(
            losses=[loss for loss, _ in found],
            correct_counts=[correct for _, correct in found],
            squares=squares(unique, SHARD_BLOCK),
            stop=self.stop.due(),
            finite=bool(np.isfinite(gradient.sum())),
            waited=self.timer.seconds["waiting"],
        )
        with self.timer("waiting"):
            return decide(self.comm, sums, microbatches, self._blocks, count)

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        config = self.config
        course = SCHEDULES[config.schedule](step / self.steps_per_epoch, config.epochs, config.gamma)
        return config.lr * course * min(1.0, (step + 1) / (config.warmup + 1))

    def _advance(self, decision: Decision, seconds: float, rate: float) -> None:
        progress, metrics = self.progress, decision.metrics
        progress.step += 1
        progress.metrics += metrics
        progress.epoch_seconds += seconds
        progress.seconds += seconds
        self._charge(decision)
        self._stopping = decision.stop
        self._to_compare = self._due(self.config.drift_check_every)
        self._to_save = decision.stop or self._due(self.config.checkpoint_every)
        with self.timer("report"):
            self.reporter.step(progress, metrics, rate)
        if progress.step % max(1, self.steps_per_epoch // STEP_EVENTS) == 0:
            progress.events.append(
                {
                    "event": "step",
                    "step": progress.step,
                    "epoch": progress.epochs + 1,
                    "loss": metrics.mean_loss,
                    "accuracy": metrics.accuracy,
                    "learning_rate": rate,
                }
            )

    def _charge(self, decision: Decision) -> None:
        """Charge what the ranks have waited for each other in a step to the rank that has waited least."""
        ranks = list(self.comm.members)
        since, self._waited[ranks] = decision.waited - self._waited[ranks], decision.waited
        self.waited_for[ranks[since.argmin()]] += (since - since.min()).sum()

    def finish_epoch(self) -> Commit:
        """Evaluate the epoch."""
        started, weights = time.perf_counter(), self.team.weights()
        evaluations = self._evaluation("validation", weights, self.samples, self.holdout.validation)
        if self.test:
            evaluations |= self._evaluation("test", weights, self.test, np.arange(len(self.test)))

        def commit() -> None:
            progress = self.progress
            progress.epochs += 1
            progress.seconds += time.perf_counter() - started
            progress.events.append(
                {
                    "event": "epoch",
                    "epoch": progress.epochs,
                    "step": progress.step,
                    "train_loss": progress.metrics.mean_loss,
                    "train_accuracy": progress.metrics.accuracy,
                    **evaluations,
                    "learning_rate": self.rate(progress.step - 1),
                    "seconds": round(progress.epoch_seconds, 3),
                    "images_per_second": round(progress.metrics.count / progress.epoch_seconds, 1),
                }
            )
            if progress.step == progress.epochs * self.steps_per_epoch:  # else --max-steps has cut it short
                progress.metrics, progress.epoch_seconds = Metrics(), 0.0
            self._to_save, self._out_of_patience = True, out_of_patience(progress, self.config)

        return commit

    def _evaluation(self, name: str, weights: Vector, samples: Samples, indices: NDArray[Any]) -> Event:
        """Loss and accuracy of these samples, if there are any."""
        if not len(indices):
            return {}
        found = evaluate(self.comm, self.network, weights, samples, indices, self.loss).metrics
        if not math.isfinite(found.loss):
            raise DivergenceError(
                f"epoch {self.progress.epochs + 1}: the {name} loss is not finite; try a smaller --lr"
            )
        return {f"{name}_loss": found.mean_loss, f"{name}_accuracy": found.accuracy}

    def write_record(self) -> Commit:
        """Write and show the lines of the record that are not yet."""
        with self.writing("report"):
            if self.comm.rank == 0:
                self.record.write(self.progress)
        return lambda: self.record.commit(self.progress)

    @contextmanager
    def writing(self, phase: str) -> Iterator[None]:
        """A block in which rank 0 writes and prints, and the others wait for it to go well."""
        with self.timer("waiting"):
            with self.comm.fail_together(), self.timer(phase):
                if self.comm.rank == 0:
                    self.record.lead(self.config, self.progress)
                yield
            self._size_of_log = self.comm.broadcast_obj(self.reporter.logged())

    def check_drift(self) -> Commit:
        """Compare what the ranks see, and record it."""
        hashes = self.team.compare()

        def commit() -> None:
            self._to_compare = False
            self.progress.events.append({"event": "hash", "step": self.progress.step, "parameters": hashes})

        return commit

    def check_data(self) -> None:
        """Make sure that the files that samples are read from are those that the run began with.

        Raises:
            DataError: on every rank.
        """
        with self.timer("waiting"), self.comm.fail_together(), self.timer("data"):
            for samples in (self.samples, self.test):
                if samples:
                    samples.check_unchanged()

    def save(self) -> Commit:
        """Write a checkpoint of all state, from the parts that the ranks hold, once all see the same."""
        self.check_data()
        with self.timer("waiting"):
            self.team.compare()
        with self.stop.saving(), self.writing("checkpoint"):
            checkpoint = self.team.checkpoint(self.samples.manifest.checksum)
            if checkpoint:
                self.run.save(checkpoint)
        return self._saved

    def _saved(self) -> None:
        self._to_save = False

    # What others ask

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint: see :meth:`Team.restore`."""
        self.team.restore(checkpoint, self.steps_per_epoch, self.last_step)
        self._adopt()

    @property
    def state(self) -> State:
        return self.team.state

    @property
    def params(self) -> Vector:
        """The parameters, (network.size,) float32, the same on every rank."""
        return self.state.now[PARAMETERS]

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def images(self, step: int) -> int:
        """Images trained on in the first ``step`` steps of the run."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.training + steps * self.config.batch

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0
