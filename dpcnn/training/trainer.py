"""The training loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.rng import Draw, permutation
from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.data.holdout import hold_out
from dpcnn.errors import DivergenceError
from dpcnn.nn.network import Network, Vector
from dpcnn.optim.clipping import squares
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.layout import PART_BLOCK
from dpcnn.parallel.tree import cut
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.console import Report
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Cursor, Tally
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
        vector: the current parameters, (network.size,) float32, the same on every rank.
        cursor: where the run is.
        listeners: each is handed every line of the run's record; on rank 0 alone.
        spans: where this rank's time goes.
        waited_for: for each rank, seconds that others have waited for it, the same on every rank.
    """

    def __init__(
        self,
        comm: Alone,
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
        self.spans = network.spans
        self.state = State(comm, config, network)
        self.exchange, self.update = self.state.exchange, self.state.update
        self.vector, self.part = self.state.vector, self.state.part
        self.waited_for, self._waited = np.zeros((2, comm.size))
        unique = self.exchange.unique
        blocks = max(comm.allgather_obj(math.ceil((unique.stop - unique.start) / PART_BLOCK)))
        self._blocks = blocks if config.clip else 0

    def fit(self) -> bool:
        """Train until the run's end, or until ``stop`` says so on any rank.

        Returns:
            Whether the end was reached; if not, a checkpoint of the last step is there.

        Raises:
            DivergenceError: on every rank, before the parameters are touched.
            CheckpointError: on every rank.
        """
        left = self.images(self.last_step) - self.images(self.cursor.step)
        self.report.begin(self.cursor, self.config.epochs, left)
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by the step itself, and named
                return self._fit()
        finally:
            self.report.end()

    def _fit(self) -> bool:
        while self.cursor.epochs < self.last_epoch:
            if why := out_of_patience(self.cursor, self.config):
                with self.writing("report"):
                    self.report.say(why)
                break
            order = self.order()
            while self.cursor.step < min((self.cursor.epochs + 1) * self.steps_per_epoch, self.last_step):
                stop = self.train_step(order)
                if self._due(self.config.guard_every):
                    self.guard()
                if stop or self._due(self.config.checkpoint_every):
                    self.save()
                if stop:
                    return False
            self.finish_epoch()
            self.save()
        return True

    def order(self) -> NDArray[Any]:
        """The training samples of the running epoch by their numbers, in the order of training."""
        order: NDArray[Any] = self.holdout.training[permutation(self.config.seed, self.cursor.epochs, self.training)]
        return order

    def train_step(self, order: NDArray[Any]) -> bool:
        """One step of every rank: gradients, their sum, one decision, one update.

        Returns:
            Whether any rank was asked to stop.
        """
        started = time.perf_counter()
        within = self.cursor.step % self.steps_per_epoch
        batch = order[within * self.config.batch : (within + 1) * self.config.batch]
        microbatches = cut(len(batch), self.config.microbatch)
        found: list[tuple[float, int]] = []

        def microbatch_gradient(number: int, out: Vector) -> None:
            found.append(self.microbatch_gradient(batch[slice(*microbatches[number])], out))

        gradient = self.exchange.sum(len(microbatches), microbatch_gradient)
        means = self.update.take_running_means(self.vector[self.part], gradient, len(batch))
        decision = self._decide(gradient, found, len(microbatches), len(batch))
        if not decision.finite:
            where = divergence(self.comm, self.network, self.vector, self.samples, batch, microbatches)
            raise DivergenceError(
                f"step {self.cursor.step + 1}, epoch {self.cursor.epochs + 1}: the loss is not finite; {where}; "
                f"the last checkpoint stays as it was; try a smaller --lr than {self.config.lr:g}"
            )
        rate, step = self.rate(self.cursor.step), self.cursor.step + 1
        with self.spans("optimizer"):
            self.update(self.vector[self.part], gradient, step, rate, decision.norm, len(batch), means)
        self.exchange.share()
        self._advance(decision.tally, time.perf_counter() - started, rate)
        return decision.stop

    def microbatch_gradient(self, indices: NDArray[Any], out: Vector) -> tuple[float, int]:
        """The gradient of the summed loss of these samples, into ``out``; returns that loss, and how many are right."""
        with self.spans("data"):
            images, labels = self.samples.take(indices)
            draw = Draw(self.config.seed, self.cursor.epochs, indices)
            images = self.augment(images, draw)
        return self.network.gradient(self.vector, images, labels, self.config.label_smoothing, out, draw)

    def _decide(self, gradient: Vector, found: list[tuple[float, int]], microbatches: int, count: int) -> Decision:
        """What all ranks conclude from what each has found; the norm is worked out where clipping asks for it."""
        unique = gradient[self.exchange.unique] if self._blocks else gradient[:0]
        sums = Sums(
            losses=[loss for loss, _ in found],
            corrects=[correct for _, correct in found],
            squares=squares(unique, PART_BLOCK),
            stop=self.stop.due(),
            finite=bool(np.isfinite(gradient.sum())),
            waited=self.spans.seconds["waiting"],
        )
        with self.spans("waiting"):
            decision = decide(self.comm, sums, microbatches, self._blocks, count)
        since, self._waited = decision.waited - self._waited, decision.waited
        self.waited_for[since.argmin()] += (since - since.min()).sum()  # charged to the rank that has waited least
        return decision

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        config = self.config
        course = SCHEDULES[config.schedule](step / self.steps_per_epoch, config.epochs, config.lr_decay)
        return config.lr * course * min(1.0, (step + 1) / (config.warmup + 1))

    def _advance(self, tally: Tally, seconds: float, rate: float) -> None:
        cursor = self.cursor
        cursor.step += 1
        cursor.tally += tally
        cursor.epoch_seconds += seconds
        cursor.seconds += seconds
        with self.spans("report"):
            self.report.step(cursor, tally, rate)
        if cursor.step % max(1, self.steps_per_epoch // STEP_EVENTS) == 0:
            self.record(
                {
                    "event": "step",
                    "step": cursor.step,
                    "epoch": cursor.epochs + 1,
                    "loss": tally.mean_loss,
                    "accuracy": tally.accuracy,
                    "learning_rate": rate,
                }
            )

    def finish_epoch(self) -> None:
        """Evaluate and record the epoch."""
        started = time.perf_counter()
        cursor = self.cursor
        cursor.epochs += 1
        with self.averaged():
            evaluations = self._evaluation("validation", self.samples, self.holdout.validation)
            if self.test:
                evaluations |= self._evaluation("test", self.test, np.arange(len(self.test)))
        event = {
            "event": "epoch",
            "epoch": cursor.epochs,
            "step": cursor.step,
            "train_loss": cursor.tally.mean_loss,
            "train_accuracy": cursor.tally.accuracy,
            **evaluations,
            "learning_rate": self.rate(cursor.step - 1),
            "seconds": round(cursor.epoch_seconds, 3),
            "images_per_second": round(cursor.tally.count / cursor.epoch_seconds, 1),
        }
        cursor.seconds += time.perf_counter() - started
        self.record(event)
        if cursor.step == cursor.epochs * self.steps_per_epoch:  # else --max-steps has cut it short
            cursor.tally, cursor.epoch_seconds = Tally(), 0.0

    def _evaluation(self, name: str, samples: Samples, indices: NDArray[Any]) -> Event:
        """Loss and accuracy of these samples, if there are any."""
        if not len(indices):
            return {}
        smoothing = self.config.label_smoothing
        found = evaluate(self.comm, self.network, self.vector, samples, indices, smoothing).tally
        if not math.isfinite(found.loss):
            raise DivergenceError(f"epoch {self.cursor.epochs}: the {name} loss is not finite; try a smaller --lr")
        return {f"{name}_loss": found.mean_loss, f"{name}_accuracy": found.accuracy}

    def record(self, event: Event) -> None:
        """Add a line to the run's record, and hand it to all listeners."""
        self.cursor.events.append(event)
        with self.writing("report"):
            for listen in self.listeners:
                listen(event)

    @contextmanager
    def writing(self, phase: str) -> Iterator[None]:
        """A block in which rank 0 writes and prints, and the others wait for it to go well."""
        with self.spans("waiting"), self.comm.together(), self.spans(phase):
            yield

    def guard(self) -> None:
        """Compare what the ranks see, and record it."""
        self.record({"event": "hash", "step": self.cursor.step, "parameters": self.state.compare()})

    def check_data(self) -> None:
        """Make sure that the files that samples are read from are those that the run began with.

        Raises:
            DataError: on every rank.
        """
        with self.spans("waiting"), self.comm.together(), self.spans("data"):
            for samples in (self.samples, self.test):
                if samples:
                    samples.check_unchanged()

    def save(self) -> None:
        """Write a checkpoint of all state, from the parts that the ranks hold, once all see the same."""
        self.check_data()
        with self.spans("waiting"):
            self.state.compare()
        with self.stop.saving(), self.averaged(), self.writing("checkpoint"):
            checkpoint = self.state.checkpoint(self.samples.manifest.checksum)
            if checkpoint:
                self.run.save(checkpoint)

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint: see :meth:`State.restore`."""
        self.state.restore(checkpoint, self.steps_per_epoch, self.last_step)

    @property
    def cursor(self) -> Cursor:
        return self.state.cursor

    def averaged(self) -> AbstractContextManager[None]:
        """A block within which ``vector`` is the average of the weights: see :meth:`State.averaged`."""
        return self.state.averaged()

    def images(self, step: int) -> int:
        """Images trained on in the first ``step`` steps of the run."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.training + steps * self.config.batch

    def _due(self, every: int) -> bool:
        return bool(every) and self.cursor.step % every == 0
