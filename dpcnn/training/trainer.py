"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.rng import SampleRng, permutation
from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.data.holdout import hold_out
from dpcnn.errors import DivergenceError
from dpcnn.nn.network import Network, Vector
from dpcnn.optim.clipping import squares
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.layout import SHARD_BLOCK
from dpcnn.parallel.tree import chunks
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.console import Report
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Metrics, Progress
from dpcnn.training.divergence import divergence
from dpcnn.training.early_stopping import out_of_patience
from dpcnn.training.evaluation import evaluate
from dpcnn.training.state import State
from dpcnn.training.step import Decision, Sums, decide

STEP_EVENTS = 10  # lines of metrics.jsonl an epoch, besides the epoch's own


class Trainer:
    """Trains a network on the ranks of a communicator; every rank makes one and calls :meth:`fit`.

    Attributes:
        state: all that the run remembers.
        params: the current parameters, (network.size,) float32, the same on every rank.
        progress: where the run is.
        listeners: each is handed every line of the run's record; on rank 0 alone.
        timer: where this rank's time goes.
        waited_for: for each rank, seconds that others have waited for it, the same on every rank.
    """

    def __init__(
        self,
        comm: SerialComm,
        config: Config,
        network: Network,
        samples: Samples,
        run: RunFolder,
        report: Report,
        stop: Stop | None = None,
        test: Samples | None = None,
    ) -> None:
        """``stop`` says when to end before the run's end; ``test`` samples are evaluated after each epoch."""
        self.comm, self.config, self.network, self.samples, self.test = comm, config, network, samples, test
        self.run, self.report, self.stop = run, report, stop or Stop()
        self.listeners: list[Callable[[Event], None]] = [run.append_event, report.event] if comm.rank == 0 else []
        self.holdout = hold_out(samples.labels, config.validation, config.holdout, config.seed)
        self.training = len(self.holdout.training)
        self.steps_per_epoch = math.ceil(self.training / config.batch)
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or 2**63)
        self.last_epoch = math.ceil(self.last_step / self.steps_per_epoch)
        self.augment = Augment(network.input_shape, config.shift, config.rotation, config.zoom, config.elastic)
        self.timer, self.loss = network.timer, config.make_loss()
        self.state = State(comm, config, network)
        self.exchange, self.update = self.state.exchange, self.state.update
        self.params, self.shard = self.state.params, self.state.shard
        self.waited_for, self._waited = np.zeros((2, comm.size))
        unique = self.exchange.unique
        blocks = max(comm.allgather_obj(math.ceil((unique.stop - unique.start) / SHARD_BLOCK)))
        self._blocks = blocks if config.max_grad_norm else 0

    def fit(self) -> bool:
        """Train until the run's end, or until ``stop`` says so on any rank.

        Returns:
            Whether the end was reached; if not, a checkpoint of the last step is there.

        Raises:
            DivergenceError: on every rank, before the parameters are touched.
            CheckpointError: on every rank.
        """
        left = self.images(self.last_step) - self.images(self.progress.step)
        self.report.begin(self.progress, self.config.epochs, left)
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by the step itself, and named
                return self._fit()
        finally:
            self.report.end()

    def _fit(self) -> bool:
        while self.progress.epochs < self.last_epoch:
            if why := out_of_patience(self.progress, self.config):
                with self.writing("report"):
                    self.report.say(why)
                break
            order = self.order()
            while self.progress.step < min((self.progress.epochs + 1) * self.steps_per_epoch, self.last_step):
                stop = self.train_step(order)
                if self._due(self.config.drift_check_every):
                    self.check_drift()
                if stop or self._due(self.config.checkpoint_every):
                    self.save()
                if stop:
                    return False
            self.finish_epoch()
            self.save()
        return True

    def order(self) -> NDArray[Any]:
        """The training samples of the running epoch by their numbers, in the order of training."""
        order: NDArray[Any] = self.holdout.training[permutation(self.config.seed, self.progress.epochs, self.training)]
        return order

    def train_step(self, order: NDArray[Any]) -> bool:
        """One step of every rank: gradients, their sum, one decision, one update.

        Returns:
            Whether any rank was asked to stop.
        """
        started = time.perf_counter()
        within = self.progress.step % self.steps_per_epoch
        batch = order[within * self.config.batch : (within + 1) * self.config.batch]
        microbatches = chunks(len(batch), self.config.microbatch)
        found: list[tuple[float, int]] = []

        def microbatch_gradient(number: int, out: Vector) -> None:
            found.append(self.microbatch_gradient(batch[slice(*microbatches[number])], out))

        gradient = self.exchange.sum(len(microbatches), microbatch_gradient)
        means = self.update.take_running_means(self.params[self.shard], gradient, len(batch))
        decision = self._decide(gradient, found, len(microbatches), len(batch))
        if not decision.finite:
            where = divergence(self.comm, self.network, self.params, self.samples, batch, microbatches)
            raise DivergenceError(
                f"step {self.progress.step + 1}, epoch {self.progress.epochs + 1}: the loss is not finite; {where}; "
                f"the last checkpoint stays as it was; try a smaller --lr than {self.config.lr:g}"
            )
        rate, step = self.rate(self.progress.step), self.progress.step + 1
        with self.timer("optimizer"):
            self.update(self.params[self.shard], gradient, step, rate, decision.norm, len(batch), means)
        self.exchange.publish()
        self._advance(decision.metrics, time.perf_counter() - started, rate)
        return decision.stop

    def microbatch_gradient(self, indices: NDArray[Any], out: Vector) -> tuple[float, int]:
        """The gradient of the summed loss of these samples, into ``out``; returns that loss, and how many are right."""
        with self.timer("data"):
            images, labels = self.samples.take(indices)
            rng = SampleRng(self.config.seed, self.progress.epochs, indices)
            images = self.augment(images, rng)
        return self.network.gradient(self.params, images, labels, self.loss, out, rng)

    def _decide(self, gradient: Vector, found: list[tuple[float, int]], microbatches: int, count: int) -> Decision:
        """What all ranks conclude from what each has found; the norm is worked out where clipping asks for it."""
        unique = gradient[self.exchange.unique] if self._blocks else gradient[:0]
        sums = Sums(
            losses=[loss for loss, _ in found],
            correct_counts=[correct for _, correct in found],
            squares=squares(unique, SHARD_BLOCK),
            stop=self.stop.due(),
            finite=bool(np.isfinite(gradient.sum())),
            waited=self.timer.seconds["waiting"],
        )
        with self.timer("waiting"):
            decision = decide(self.comm, sums, microbatches, self._blocks, count)
        since, self._waited = decision.waited - self._waited, decision.waited
        self.waited_for[since.argmin()] += (since - since.min()).sum()  # charged to the rank that has waited least
        return decision

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        config = self.config
        course = SCHEDULES[config.schedule](step / self.steps_per_epoch, config.epochs, config.gamma)
        return config.lr * course * min(1.0, (step + 1) / (config.warmup + 1))

    def _advance(self, metrics: Metrics, seconds: float, rate: float) -> None:
        progress = self.progress
        progress.step += 1
        progress.metrics += metrics
        progress.epoch_seconds += seconds
        progress.seconds += seconds
        with self.timer("report"):
            self.report.step(progress, metrics, rate)
        if progress.step % max(1, self.steps_per_epoch // STEP_EVENTS) == 0:
            self.record(
                {
                    "event": "step",
                    "step": progress.step,
                    "epoch": progress.epochs + 1,
                    "loss": metrics.mean_loss,
                    "accuracy": metrics.accuracy,
                    "learning_rate": rate,
                }
            )

    def finish_epoch(self) -> None:
        """Evaluate and record the epoch."""
        started = time.perf_counter()
        progress = self.progress
        progress.epochs += 1
        with self.averaged():
            evaluations = self._evaluation("validation", self.samples, self.holdout.validation)
            if self.test:
                evaluations |= self._evaluation("test", self.test, np.arange(len(self.test)))
        event = {
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
        progress.seconds += time.perf_counter() - started
        self.record(event)
        if progress.step == progress.epochs * self.steps_per_epoch:  # else --max-steps has cut it short
            progress.metrics, progress.epoch_seconds = Metrics(), 0.0

    def _evaluation(self, name: str, samples: Samples, indices: NDArray[Any]) -> Event:
        """Loss and accuracy of these samples, if there are any."""
        if not len(indices):
            return {}
        found = evaluate(self.comm, self.network, self.params, samples, indices, self.loss).metrics
        if not math.isfinite(found.loss):
            raise DivergenceError(f"epoch {self.progress.epochs}: the {name} loss is not finite; try a smaller --lr")
        return {f"{name}_loss": found.mean_loss, f"{name}_accuracy": found.accuracy}

    def record(self, event: Event) -> None:
        """Add a line to the run's record, and hand it to all listeners."""
        self.progress.events.append(event)
        with self.writing("report"):
            for listen in self.listeners:
                listen(event)

    @contextmanager
    def writing(self, phase: str) -> Iterator[None]:
        """A block in which rank 0 writes and prints, and the others wait for it to go well."""
        with self.timer("waiting"), self.comm.fail_together(), self.timer(phase):
            yield

    def check_drift(self) -> None:
        """Compare what the ranks see, and record it."""
        self.record({"event": "hash", "step": self.progress.step, "parameters": self.state.compare()})

    def check_data(self) -> None:
        """Make sure that the files that samples are read from are those that the run began with.

        Raises:
            DataError: on every rank.
        """
        with self.timer("waiting"), self.comm.fail_together(), self.timer("data"):
            for samples in (self.samples, self.test):
                if samples:
                    samples.check_unchanged()

    def save(self) -> None:
        """Write a checkpoint of all state, from the parts that the ranks hold, once all see the same."""
        self.check_data()
        with self.timer("waiting"):
            self.state.compare()
        with self.stop.saving(), self.averaged(), self.writing("checkpoint"):
            checkpoint = self.state.checkpoint(self.samples.manifest.checksum)
            if checkpoint:
                self.run.save(checkpoint)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint: see :meth:`State.restore`."""
        self.state.restore(checkpoint, self.steps_per_epoch, self.last_step)

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def averaged(self) -> AbstractContextManager[None]:
        """A block within which ``params`` is the average of the weights: see :meth:`State.averaged`."""
        return self.state.averaged()

    def images(self, step: int) -> int:
        """Images trained on in the first ``step`` steps of the run."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.training + steps * self.config.batch

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0
