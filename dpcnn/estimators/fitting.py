"""The training of a model: the same as that of ``dpcnn train``, with samples from arrays or from a data set."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpcnn.base.numerics import check, fingerprint
from dpcnn.config import Config, from_dict
from dpcnn.data.dataset import Samples
from dpcnn.estimators.arrays import check_same
from dpcnn.estimators.files import file_path
from dpcnn.parallel.comm import SerialComm
from dpcnn.runs.checkpoint import Checkpoint
from dpcnn.runs.console import Console
from dpcnn.runs.events import Event
from dpcnn.runs.progress import Metrics, Progress
from dpcnn.runs.unkept import Unkept
from dpcnn.training.lines import step_line
from dpcnn.training.resume import Start, as_begun, check_resumable
from dpcnn.training.setup import make_trainer, open_run, share_start
from dpcnn.training.times import write_times
from dpcnn.training.trainer import Trainer

Callback = Callable[[Event], Any]
"""A function of a step's or an epoch's figures, by name; its result is ignored."""


class Announcer(Console):
    """Prints like ``dpcnn train``, and calls a function after each step and after each epoch, on every rank."""

    def __init__(self, speaks: Callable[[], bool], on_step: Callback | None, on_epoch: Callback | None) -> None:
        super().__init__(speaks)
        self._on_step, self._on_epoch = on_step, on_epoch

    def step(self, progress: Progress, metrics: Metrics, rate: float) -> None:
        super().step(progress, metrics, rate)
        if self._on_step:
            self._on_step(figures(step_line(progress, metrics, rate)))

    def epoch(self, event: Event) -> None:
        if self._on_epoch:
            self._on_epoch(figures(event))


def figures(event: Event) -> Event:
    """A copy of an event without its kind."""
    return {key: value for key, value in event.items() if key != "event"}


def train(
    comm: SerialComm, config: Config, samples: Samples, test: Samples | None, out: str | Path | None, reporter: Console
) -> Checkpoint:
    """Train on every rank of ``comm``.

    Args:
        test: samples that are evaluated after each epoch.
        out: the folder of the run, which is resumed if it has begun there; None: the run writes no files.

    Returns:
        The final weights, on every rank, without the state of the optimizer.

    Raises:
        ConfigError, DataError, CheckpointError, DivergenceError: on every rank.
    """
    comm.forget()  # deaths between two runs
    comm.on_death(reporter.retry)
    try:
        trainer, start = comm.transact(lambda: _set_up(comm, config, samples, test, out, reporter))
        comm.on_death(trainer.assemble)
        comm.transact(lambda: open_run(trainer, start, reporter))
        reporter.commit()
        trainer.fit()
        if out:
            trainer.transact(lambda: write_times(trainer, reporter))
    finally:
        comm.forget()
    return _result(trainer)


def _set_up(
    comm: SerialComm, config: Config, samples: Samples, test: Samples | None, out: str | Path | None, reporter: Console
) -> tuple[Trainer, Start]:
    start = Start(Unkept())
    check_same(comm, [], bool(out))
    if out:
        with comm.fail_together():
            folder = file_path(out)
        start = share_start(comm, Namespace(out=str(folder), resume="auto", recipe=None, tensorboard=False), reporter)
    with comm.fail_together():
        check(config.numerics)
        if start.resumes:
            of_run = from_dict(start.config)
            config = as_begun(config, of_run)
            check_resumable(of_run, config, str(start.folder.path))
    return make_trainer(comm, config, samples, start, reporter, test=test), start


def _result(trainer: Trainer) -> Checkpoint:
    network, manifest = trainer.network, trainer.samples.manifest
    return Checkpoint(
        parameters=network.views(trainer.final_weights),
        optimizer={},
        progress=trainer.progress,
        config=trainer.config,
        image_shape=network.input_shape,
        class_names=manifest.class_names,
        resize=manifest.resize,
        data=manifest.checksum,
        weights_sha256=trainer.weights_sha256,
        fingerprint=fingerprint(),
        labels=trainer.samples.class_labels,
        max_value=trainer.samples.max_value,
    )
