"""The training loop.

The loop does one action after another: a step, an evaluation, a line of the record, a checkpoint. Each is a transaction
of all living ranks (:mod:`dpcnn.parallel.survival`). An action reads the committed state, writes memory that nobody
needs if it fails, and returns what to do once all ranks have finished it. So all ranks change the state, or none.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from dpcnn.base.arrays import Vector
from dpcnn.base.numerics import check
from dpcnn.cluster.stopping import Stop
from dpcnn.config import Config
from dpcnn.data.dataset import Samples
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import Checkpoint, weights_sha256
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.progress import Metrics, Progress
from dpcnn.runs.record import Record
from dpcnn.training.early_stopping import out_of_patience
from dpcnn.training.evaluation import evaluate_sets
from dpcnn.training.gradient import MicrobatchGradient
from dpcnn.training.lines import death_line, end_line, epoch_line, step_line
from dpcnn.training.plan import Plan
from dpcnn.training.saving import Saving, has_spare
from dpcnn.training.state import PARAMETERS, State
from dpcnn.training.step import Decision, take_step
from dpcnn.training.team import Team
from dpcnn.training.waiting import Waiting
from dpcnn.training.warm_start import WarmStart

STEP_EVENTS = 10  # about so many lines of metrics.jsonl per epoch, besides the line of the epoch

T = TypeVar("T")
Commit = Callable[[], None]
"""What to do when all ranks have finished an action."""


class Trainer:
    """Trains a network on the ranks of a communicator; every rank makes one and calls :meth:`fit`.

    Attributes:
        team: the living ranks, and what depends on their number.
        state: all that the run remembers.
        progress: where the run is.
        warm: the initial values of a warm start, which the run saves first; None: the seed draws them.
        record: the run's record.
        saving: the checkpoints that are to be written, and that are being written.
        final_weights, weights_sha256: the weights to use, (network.size,), and their sha256; empty until the run's end.
        timer: where this rank's time goes.
        waiting: the time that ranks wait for each other; the same on every rank.
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
        warm: WarmStart | None = None,
    ) -> None:
        """``stop`` says when to end before the run's end; ``test`` samples are evaluated after each epoch."""
        check(config.numerics)
        self.comm, self.config, self.network, self.samples, self.test = comm, config, network, samples, test
        self.run, self.reporter, self.stop, self.warm = run, reporter, stop or Stop(), warm
        self.record, self.saving = Record(run, reporter, tensorboard), Saving(comm, run, self.stop)
        self.plan, self.microbatch_gradient = Plan(config, samples), MicrobatchGradient(config, network, samples)
        self.timer, self.loss = network.timer, config.make_loss()
        self.waiting, self.min_ranks = Waiting(max(comm.members) + 1), 1
        self.origin: Path | None = None
        self._hosts = dict(zip(comm.members, comm.allgather_obj(platform.node()), strict=True))
        self._deaths_noted, self._stopping, self._over = 0, False, False
        self._committed: State | None = None
        self.assemble()
        self._adopt()

    # The loop: all that it decides, it decides by the committed state, which is the same on every rank

    def fit(self) -> bool:
        """Train until the run's end, or until ``stop`` says so on any rank.

        Returns:
            Whether the end was reached; if not, a checkpoint of the last step is there.

        Raises:
            DivergenceError: on every rank; a step that is not finite does not change the parameters.
            CheckpointError: on every rank.
        """
        left = self.plan.images(self.plan.last_step, self.progress.step)
        self.reporter.begin(self.progress, self.config.epochs, left)
        try:
            with np.errstate(all="ignore"):  # what is not finite is found by the step itself, and named
                while not self._over:
                    self.transact(self.next_action)()
        finally:
            self.reporter.end()
            self.saving.join()
        return not self._stopping

    def transact(self, action: Callable[[], T]) -> T:
        """Do an action on all living ranks: see :meth:`dpcnn.parallel.comm.SerialComm.transact`."""
        result = self.comm.transact(action, self.timer)
        self.reporter.commit()
        return result

    def next_action(self) -> Commit:
        """Do what the state asks for; the same on every rank."""
        progress = self.progress
        if self.state is not self._committed:
            return self._adopt
        if len(self.comm.deaths) > self._deaths_noted:
            return self._note_death
        over = self._stopping or progress.epochs >= self.plan.last_epoch or bool(self._out_of_patience)
        if self.state.holder is not None and (self.saving.due or over or not self.saving.continues(self.state)):
            return self.finish_saving()
        if len(progress.events) > self.record.shown:
            return self.write_record()
        if self._to_compare:
            return self.check_drift()
        if self.saving.due:
            return self.save()
        if self._stopping or self.weights_sha256:
            return self._end
        if over:
            return self.end_run()
        if self.plan.epoch_ends(progress.epochs, progress.step):
            return self.finish_epoch()
        return self.train_step()

    def assemble(self) -> None:
        """Make the team of the living ranks. If a part of the state is lost, they go back to the last checkpoint."""
        if self._over:
            return  # all is written but for a few lines
        with self.timer("recovery"):
            spare, images = has_spare(self.run, self.network.size), self.plan.training
            self.team = Team(self.comm, self.config, self.network, images, self._committed, self.warm, spare)
            if self.team.new and self._committed:
                checkpoint = self.saving.newest(self.origin)
                if self.comm.broadcast_obj(checkpoint is not None):
                    self.team.restore(checkpoint, self.plan)

    def _adopt(self) -> None:
        """Go on from the state of the team."""
        self._committed = self.state
        self._to_compare, self.saving.due = False, self.warm is not None and self.progress.step == 0
        self.final_weights, self.weights_sha256 = np.empty(0, np.float32), ""
        self._out_of_patience = out_of_patience(self.progress, self.config)
        self.record.restart(self.progress)

    def _note_death(self) -> None:
        """Put into the record who has died; with too few ranks left, stop."""
        death = self.comm.deaths[self._deaths_noted]
        self._deaths_noted += 1
        self.progress.events.append(death_line(self.progress, death, self._hosts))
        if death.left < self.min_ranks:
            self.stop.ask(f"fewer than {self.min_ranks} ranks are left")
            self._stopping = self.saving.due = True

    def end_run(self) -> Commit:
        """Say why the run ends before its last epoch, if it does; keep its weights, and record its end."""
        with self.writing("report"):
            if self._out_of_patience and self.progress.epochs < self.plan.last_epoch:
                self.reporter.say(self._out_of_patience)
        weights = self.team.weights().copy()

        def commit() -> None:
            self.final_weights, self.weights_sha256 = weights, weights_sha256(weights)
            self.progress.events.append(end_line(self.progress, self.config.monitored, self.weights_sha256))

        return commit

    def _end(self) -> None:
        self._over = True

    def train_step(self) -> Commit:
        """One step of every rank: see :func:`dpcnn.training.step.take_step`."""
        started, lr, state = time.perf_counter(), self.plan.lr(self.progress.step, self.progress), self.state
        decision = take_step(self.team, self.plan, self.microbatch_gradient, self.stop.due, lr)

        def commit() -> None:
            state.commit()
            self._advance(decision, time.perf_counter() - started, lr)

        return commit

    def _advance(self, decision: Decision, seconds: float, lr: float) -> None:
        progress, metrics = self.progress, decision.metrics
        progress.step += 1
        progress.metrics += metrics
        progress.epoch_seconds += seconds
        progress.seconds += seconds
        self.waiting.charge(self.comm.members, decision.waited)
        self._stopping = decision.stop
        self._to_compare = self._due(self.config.drift_check_every)
        epoch_ends = self.plan.epoch_ends(progress.epochs, progress.step)  # its evaluation may fail
        self.saving.due = decision.stop or epoch_ends or self._due(self.config.checkpoint_every)
        with self.timer("report"):
            self.reporter.step(progress, metrics, lr)
        if progress.step % max(1, self.plan.steps_per_epoch // STEP_EVENTS) == 0:
            progress.events.append(step_line(progress, metrics, lr))

    def finish_epoch(self) -> Commit:
        """Evaluate the epoch."""
        started, weights = time.perf_counter(), self.team.weights()
        sets = self.plan.evaluated(self.samples, self.test)
        evaluations = evaluate_sets(self.comm, self.network, weights, sets, self.loss, self.progress.epochs + 1)

        def commit() -> None:
            progress = self.progress
            progress.epochs += 1
            progress.seconds += time.perf_counter() - started
            progress.events.append(epoch_line(progress, evaluations, self.plan.lr(progress.step - 1, progress)))
            self.reporter.epoch(progress.events[-1])
            if progress.step == progress.epochs * self.plan.steps_per_epoch:  # else --max-steps has cut it short
                progress.metrics, progress.epoch_seconds = Metrics(), 0.0
            self.saving.due, self._out_of_patience = True, out_of_patience(progress, self.config)

        return commit

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
            self.reporter.written = self.comm.broadcast_obj(self.reporter.logged())

    def check_drift(self) -> Commit:
        """Compare what the ranks see, and record it."""
        hashes = self.team.compare()

        def commit() -> None:
            self._to_compare = False
            self.progress.events.append({"event": "hash", "step": self.progress.step, "parameters": hashes})

        return commit

    def save(self) -> Commit:
        """Begin to write a checkpoint of all state, from the parts that the ranks hold, once all see the same."""
        since = time.monotonic()
        with self.timer("waiting"), self.comm.fail_together(), self.timer("data"):
            for samples in filter(None, (self.samples, self.test)):
                samples.check_unchanged()
        with self.writing("checkpoint"):
            return self.saving.begin(self.team, self.samples, since)

    def finish_saving(self) -> Commit:
        """Wait until the checkpoint that is being written is complete; then write the record."""
        with self.writing("checkpoint"):
            self.saving.check()
        return self.saving.finish(self.state, self.write_record())

    def restore(self, checkpoint: Checkpoint | None) -> None:
        """Go on from a checkpoint: see :meth:`Team.restore`."""
        self.team.restore(checkpoint, self.plan)
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

    def _due(self, every: int) -> bool:
        return bool(every) and self.progress.step % every == 0
