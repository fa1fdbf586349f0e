"""The training loop."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpcnn.base.arrays import zeros
from dpcnn.base.numerics import fingerprint
from dpcnn.base.rng import Draw, permutation
from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.augment import Augment
from dpcnn.data.dataset import Samples
from dpcnn.data.holdout import hold_out
from dpcnn.errors import CheckpointError, DivergenceError
from dpcnn.nn.network import Network, Vector
from dpcnn.optim.averaging import average
from dpcnn.optim.clipping import shorten, squares
from dpcnn.optim.optimizers import OPTIMIZERS
from dpcnn.optim.schedules import SCHEDULES
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.exchange import EXCHANGES
from dpcnn.parallel.layout import PART_BLOCK
from dpcnn.parallel.tree import Node, cut, middle, shares
from dpcnn.runs.checkpoint import Checkpoint, weights_sha256
from dpcnn.runs.console import Report
from dpcnn.runs.events import Event
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Cursor, Tally, total
from dpcnn.training.drift import Hashes, check_drift, tensor_hashes
from dpcnn.training.evaluation import evaluate

STOP, DIVERGED = 1, 2  # what a rank may have to say at a step's end, as bits
STEP_EVENTS = 10  # lines of metrics.jsonl an epoch, besides the epoch's own


class Trainer:
    """Trains a network on the ranks of a communicator; every rank makes one and calls :meth:`fit`.

    Attributes:
        vector: the current parameters, (network.size,) float32, the same on every rank.
        state: this rank's part of all else that a run remembers, by name.
        cursor: where the run is.
        stop: when to end before the run's end: nobody asks for it, unless the caller gives another.
        test: test samples, to be evaluated after each epoch; None, or a value given by the caller.
        spans: where this rank's time goes.
        waited_for: for each rank, seconds that others have waited for it, the same on every rank.
    """

    def __init__(
        self, comm: Alone, config: Config, network: Network, samples: Samples, run: RunFolder, report: Report
    ) -> None:
        self.comm, self.config, self.network, self.samples = comm, config, network, samples
        self.run, self.report = run, report
        self.stop = Stop()
        self.test: Samples | None = None
        self.holdout = hold_out(samples.labels, config.validation, config.holdout, config.seed)
        self.training = len(self.holdout.training)
        self.steps_per_epoch = math.ceil(self.training / config.batch)
        self.last_step = min(config.epochs * self.steps_per_epoch, config.max_steps or 2**63)
        self.last_epoch = math.ceil(self.last_step / self.steps_per_epoch)
        self.augment = Augment(network.input_shape, config.shift, config.rotation, config.zoom, config.elastic)
        self.cursor = Cursor()
        self.spans = network.spans
        self.exchange = EXCHANGES[config.exchange](comm, network.size, self.spans)
        self.vector, self.part = self.exchange.vector, self.exchange.part
        self.vector[self.part] = network.initialise(config.seed, config.init, config.init_deviation)[self.part]
        self.exchange.share()
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.part.stop - self.part.start, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.state = dict(self.optimizer.state)
        if config.average:
            self.state["average"] = self.vector[self.part].copy()
        self.running = [
            (slice(lo - self.part.start, hi - self.part.start), rate)
            for start, stop, rate in network.running
            if (lo := max(start, self.part.start)) < (hi := min(stop, self.part.stop))
        ]
        self.waited_for, self._waited = np.zeros((2, comm.size))
        self._spares: list[Vector] = []
        unique = self.exchange.unique
        self._blocks = max(comm.allgather_obj(math.ceil((unique.stop - unique.start) / PART_BLOCK)))
        self._blocks *= config.clip > 0

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
            if self._out_of_patience():
                self._say_why_it_ends()
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
        leaves = cut(len(batch), self.config.microbatch)

        tallies: list[tuple[float, int]] = []
        for node, row in self.exchange.rows(len(leaves)):
            self._add_up(node, row, batch, leaves, tallies)
        gradient = self.exchange.sum(len(leaves))
        running = self._running_means(gradient, len(batch))
        flags, tally, norm = self._decide(gradient, tallies, len(leaves), len(batch))
        if flags & DIVERGED:
            raise self._divergence(batch, leaves)

        rate = self.rate(self.cursor.step)
        with self.spans("optimizer"):
            self._update(gradient, rate, shorten(norm, self.config.clip) / len(batch), running)
        self.exchange.share()
        self._advance(tally, time.perf_counter() - started, rate)
        return bool(flags & STOP)

    def _running_means(self, gradient: Vector, count: int) -> list[Vector]:
        """What the running means of this rank's part will be; their elements of the gradient become 0."""
        found = []
        for place, rate in self.running:
            now = self.vector[self.part][place]
            found.append(now + np.float32(rate) * (gradient[place] / np.float32(count) - now))
            gradient[place] = 0
        return found

    def _update(self, gradient: Vector, rate: float, scale: float, running: list[Vector]) -> None:
        """This rank's part of the parameters, from its part of the summed gradient."""
        parameters, step = self.vector[self.part], self.cursor.step + 1
        self.optimizer.update(parameters, gradient, step, rate, scale)
        for (place, _), mean in zip(self.running, running, strict=True):
            parameters[place] = mean
        if self.config.average:
            average(self.state["average"], parameters, step, self.config.average)

    def _add_up(
        self, node: Node, out: Vector, batch: Any, leaves: list[Node], tallies: list[Any], depth: int = 0
    ) -> None:
        """The gradient sum of a subtree of microbatches, into ``out``; see :mod:`dpcnn.parallel.tree`."""
        lo, hi = node
        if hi - lo == 1:
            numbers = batch[slice(*leaves[lo])]
            with self.spans("data"):
                images, labels = self.samples.take(numbers)
                draw = Draw(self.config.seed, self.cursor.epochs, numbers)
                images = self.augment(images, draw)
            smoothing = self.config.label_smoothing
            tallies.append(self.network.gradient(self.vector, images, labels, smoothing, out, draw))
            return
        if len(self._spares) == depth:
            self._spares.append(zeros(self.vector.shape, np.float32))
        m, right = middle(lo, hi), self._spares[depth]
        self._add_up((lo, m), out, batch, leaves, tallies, depth)
        self._add_up((m, hi), right, batch, leaves, tallies, depth + 1)
        with self.spans("exchange"):
            out += right

    def _decide(
        self, gradient: Vector, tallies: list[tuple[float, int]], leaves: int, count: int
    ) -> tuple[int, Tally, float]:
        """Every rank's flags and tallies and the gradient's norm, the same on all ranks: the step's one small message.

        The norm is that of the mean gradient; it is worked out where ``clip`` asks for it, and 0 elsewhere.
        """
        most = math.ceil(leaves / self.comm.size)
        row = np.zeros(2 + 2 * most + self._blocks)

        def columns(rows: NDArray[Any]) -> list[NDArray[Any]]:
            return np.split(rows, [1, 2, 2 + most, 2 + 2 * most], axis=-1)

        flags, waited, losses, corrects, of_blocks = columns(row)
        flags[0] = STOP * self.stop.due() | DIVERGED * (not np.isfinite(gradient.sum()))
        waited[0] = self.spans.seconds["waiting"]
        losses[: len(tallies)] = [loss for loss, _ in tallies]
        corrects[: len(tallies)] = [correct for _, correct in tallies]
        if self._blocks:
            found = squares(gradient[self.exchange.unique], PART_BLOCK)
            of_blocks[: len(found)] = found
        with self.spans("waiting"):
            rows = self.comm.allgather(row)
        flags, waited, losses, corrects, of_blocks = columns(rows)
        self._bill(waited.ravel())
        flag = int(np.bitwise_or.reduce(flags.astype(np.int64), axis=None))
        if not (np.isfinite(losses).all() and np.isfinite(of_blocks).all()):
            return flag | DIVERGED, Tally(), 0.0
        norm = math.fsum(of_blocks.ravel()) ** 0.5 / count
        return flag, total(losses.ravel(), corrects.ravel(), count), norm

    def _bill(self, waited: NDArray[Any]) -> None:
        """Put what the ranks have waited since the last step on the account of the one that has waited least."""
        since, self._waited = waited - self._waited, waited
        self.waited_for[since.argmin()] += (since - since.min()).sum()

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

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A block within which ``vector`` is the average of the weights, and ``state`` has the weights in its place;
        for a run without an average, a block like any other."""
        self._swap()
        yield
        self._swap()

    def _swap(self) -> None:
        if self.config.average:
            with self.spans("waiting"):
                self.comm.barrier()  # nobody reads the parameters any more
            parameters, other = self.vector[self.part], self.state["average"]
            parameters[...], other[...] = other.copy(), parameters.copy()
            self.exchange.share()

    def record(self, event: Event) -> None:
        """Add a line to metrics.jsonl, and say it."""
        self.cursor.events.append(event)
        with self.writing("report"):
            if self.comm.rank == 0:
                self.run.append_event(event)
                self.report.event(event)

    @contextmanager
    def writing(self, phase: str) -> Iterator[None]:
        """A block in which rank 0 writes and prints, and the others wait for it to go well."""
        with self.spans("waiting"), self.comm.together(), self.spans(phase):
            yield

    def guard(self) -> None:
        """Compare what the ranks see, and record it."""
        self.record({"event": "hash", "step": self.cursor.step, "parameters": self._compare()})

    def _compare(self) -> Hashes:
        hashes = tensor_hashes(self.network.views(self.vector)) if self.exchange.owns_copy else None
        by_rank = self.comm.allgather_obj(hashes)
        check_drift(by_rank, self.cursor.step)
        of_first: Hashes = by_rank[0]
        return of_first

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
            self._compare()
        with self.stop.saving(), self.averaged(), self.writing("checkpoint"):
            collected = {name: self.exchange.collect(part) for name, part in self.state.items()}
            vectors = {name: vector for name, vector in collected.items() if vector is not None}
            if self.comm.rank == 0:
                if not np.isfinite(self.vector).all():
                    raise DivergenceError(f"step {self.cursor.step}: weights are not finite; try a smaller --lr")
                self.run.save(
                    Checkpoint(
                        self.network.views(self.vector),
                        vectors,
                        self.cursor,
                        self.config,
                        self.network.input_shape,
                        self.network.classes,
                        self.samples.manifest.checksum,
                        weights_sha256(self.vector),
                        fingerprint(),
                    )
                )

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint, which rank 0 has read: the others pass None.

        Raises:
            CheckpointError: on every rank, where it is of another model or optimizer.
        """
        vectors: dict[str, Vector] = {}
        with self.comm.together():
            if checkpoint:
                checkpoint.cursor.check(self.steps_per_epoch)
                check_state(checkpoint.optimizer, self.state, self.network.size)
                vectors = {"parameters": self.network.flat(checkpoint.parameters), **checkpoint.optimizer}
        for name, part in {"parameters": self.vector[self.part], **self.state}.items():
            self.exchange.spread(vectors.get(name), part)
        self.exchange.share()
        self._swap()  # a checkpoint's parameters are the average
        self.cursor = Cursor.from_dict(self.comm.broadcast_obj(checkpoint and asdict(checkpoint.cursor)))
        self.cursor.reopen(self.steps_per_epoch, self.last_step)

    def images(self, step: int) -> int:
        """Images trained on in the first ``step`` steps of the run."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.training + steps * self.config.batch

    def _divergence(self, batch: NDArray[Any], leaves: list[Node]) -> DivergenceError:
        """What to say of a loss or gradient that is not finite: all ranks look, all say the same."""
        bounds = shares(len(leaves), self.comm.size)
        layers = []
        for start, stop in leaves[bounds[self.comm.rank] : bounds[self.comm.rank + 1]]:
            images, _ = self.samples.take(batch[start:stop])
            layers.append(self.network.first_not_finite(self.vector, images))
        found = [layer for rank in self.comm.allgather_obj(layers) for layer in rank if layer]
        where = f"the first layer with values that are not finite is {found[0]}" if found else "the gradient is not"
        saved = "the last checkpoint stays as it was"
        return DivergenceError(
            f"step {self.cursor.step + 1}, epoch {self.cursor.epochs + 1}: the loss is not finite; {where}; "
            f"{saved}; try a smaller --lr than {self.config.lr:g}"
        )

    def _out_of_patience(self) -> bool:
        best, patience = self.cursor.best(self.config.monitor), self.config.patience
        return bool(patience and best and self.cursor.epochs - best["epoch"] >= patience)

    def _say_why_it_ends(self) -> None:
        best, config = self.cursor.best(self.config.monitor), self.config
        assert best is not None
        with self.writing("report"):
            self.report.say(
                f"stopped early, after epoch {self.cursor.epochs} of {config.epochs}: no better validation "
                f"{config.monitor} in {config.patience} epochs; the best is that of epoch {best['epoch']}"
            )

    def _due(self, every: int) -> bool:
        return bool(every) and self.cursor.step % every == 0


def check_state(found: dict[str, Vector], state: dict[str, Vector], size: int) -> None:
    """Hold a checkpoint's optimizer vectors against those of the run.

    Raises:
        CheckpointError: they are another optimizer's.
    """
    shapes = {name: vector.shape for name, vector in found.items()}
    if shapes != dict.fromkeys(state, (size,)):
        raise CheckpointError(f"the checkpoint's optimizer holds {shapes}, expected {sorted(state)} of ({size},)")
