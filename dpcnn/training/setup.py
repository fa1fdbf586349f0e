"""Everything before the first step: options, data, network, state, the run's folder."""

import json
import platform
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from dpcnn import __version__
from dpcnn.base.numerics import check, deviations, differences, fingerprint
from dpcnn.base.options import flag_of
from dpcnn.base.text import count_of
from dpcnn.cluster.stopping import Stop
from dpcnn.config import MOST_BATCH, Config
from dpcnn.data.augment import augmentations
from dpcnn.data.dataset import Samples, find_data, find_data_of, load
from dpcnn.data.stage import stage
from dpcnn.errors import CheckpointError, ConfigError
from dpcnn.nn.losses import CLASSES
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exact import agreed_layout
from dpcnn.parallel.survival import survival
from dpcnn.parallel.tree import sums_held
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.runs.tensorboard import writer_class
from dpcnn.training.fitted import fitted
from dpcnn.training.resume import Start, choose_config, find_start
from dpcnn.training.saving import vectors
from dpcnn.training.team import microbatch_sizes
from dpcnn.training.trainer import Trainer
from dpcnn.training.warm_start import warm_start


def set_up(comm: SerialComm, options: Namespace, reporter: Reporter, stop: Stop) -> tuple[Trainer, Start]:
    """Everything before the first step, except the run's folder: options, data, network, state.

    Nothing is written before everything that the user gave has been checked.
    """
    start = share_start(comm, options, reporter)
    with comm.fail_together():
        config = choose_config(options, start)
        check(config.numerics)
    check_same(comm, config.as_dict())
    with comm.fail_together():
        run = start.source or (str(start.folder.path) if start.resumes else "")
        data = find_data_of(run, config.data) if run and "data" not in options else find_data(config.data)
    if options.stage:
        data = stage(data, options.stage, comm)
    samples = load(data, "train", comm, options.verify)
    test = load(data, "test", comm, options.verify) if config.test else None
    trainer = make_trainer(comm, config, samples, start, reporter, stop, test, options.tensorboard)
    trainer.min_ranks = options.min_ranks
    return trainer, start


def check_same(comm: SerialComm, options: Mapping[str, Any]) -> None:
    """Make sure that all ranks have the options of rank 0.

    Raises:
        ConfigError: on every rank, if an option differs, as where mpirun was given several commands.
    """
    texts = {name: json.dumps(value) for name, value in options.items()}
    first = comm.broadcast_obj(texts)
    with comm.fail_together():
        for name, value in texts.items():
            if value != first.get(name):
                raise ConfigError(
                    f"{flag_of(name)}: rank 0 has {first.get(name)}, but rank {comm.rank} has {value}; "
                    "give all ranks the same command"
                )


def share_start(comm: SerialComm, options: Namespace, reporter: Reporter) -> Start:
    """Find the start on rank 0, share it with all ranks, and let the reporter continue the log that lies there."""
    start = Start(RunFolder(Path()))
    with comm.fail_together():
        if comm.rank == 0:
            if options.tensorboard:
                writer_class()
            start = find_start(options)
            if not start.resumes:
                start.folder.check_free()
    start = start.shared(comm)
    reporter.log_to(start.folder.log)
    reporter.size = reporter.written = comm.broadcast_obj(reporter.logged())
    return start


def make_trainer(
    comm: SerialComm,
    config: Config,
    samples: Samples,
    start: Start,
    reporter: Reporter,
    stop: Stop | None = None,
    test: Samples | None = None,
    tensorboard: bool = False,
) -> Trainer:
    """The trainer of a run at its start, on every rank.

    Raises:
        CheckpointError, ConfigError: on every rank.
    """
    with comm.fail_together():
        if start.checkpoint and start.checkpoint.data != samples.manifest.checksum:
            raise CheckpointError(
                f"{start.path}: trained on other data than {samples.manifest.name}; give the data set of the run"
            )
        check_labels(start, samples)
        config, network = fitted(config, samples.manifest)
    check_memory(comm, config, network, len(samples), start.folder)
    warm = None
    if config.init_from and not start.path:
        warm = warm_start(comm, config, network)
        config = replace(config, init_from_sha256=warm.sha256)
    trainer = Trainer(comm, config, network, samples, start.folder, reporter, stop, test, tensorboard, warm)
    if start.path:
        trainer.restore(start.checkpoint)
    trainer.origin = start.path
    with comm.fail_together():
        if comm.rank == 0 and not start.resumes:
            start.folder.check_free()
    return trainer


def check_labels(start: Start, samples: Samples) -> None:
    """Make sure that the classes of arrays have the labels that they had when the run began.

    Raises:
        CheckpointError: they have others; the files of the run would not mean what the model says.
    """
    if start.checkpoint and start.checkpoint.labels != samples.class_labels:
        was, now = (", ".join(map(str, labels[:9])) for labels in (start.checkpoint.labels, samples.class_labels))
        raise CheckpointError(f"{start.path}: the run has the labels {was}, not {now}; give those, or another out")


def check_memory(comm: SerialComm, config: Config, network: Network, images: int, folder: RunFolder) -> None:
    """Make sure that the training on so many images has memory for its steps on every node.

    Raises:
        ConfigError: on every rank, if a node has too little memory.
    """
    ranks, sizes = comm.node().size, microbatch_sizes(config, images)
    received = ceil(received_sums(comm, config, network, sizes) / network.size)
    more = ranks * (sums_held(len(sizes), comm.size) - 1)  # one gradient is in the estimate
    with comm.fail_together():
        advice = "give a smaller --microbatch, which affects the bits, or start fewer ranks"
        beside = vectors(config, folder, network.size) + received + more
        network.check_memory(max(sizes), ranks, advice, beside)


def received_sums(comm: SerialComm, config: Config, network: Network, sizes: Sequence[int]) -> int:
    """The most elements that a node receives in a step: sums of the other nodes, beside a place for its own."""
    layout = agreed_layout(comm, network.size, network.products, sizes)
    exact = config.exchange == "exact" and len(layout.nodes) > 1
    return layout.received(len(sizes)) if exact else 0


def open_run(trainer: Trainer, start: Start, reporter: Reporter, last: str = "") -> None:
    """Open the run's folder for writing, and print the opening lines; ``last`` is one more, unless it is empty."""
    comm = trainer.comm
    numerics = comm.allgather_obj([platform.node(), fingerprint()])
    with comm.fail_together():
        if comm.rank == 0:
            fresh = not start.resumes and not comm.repeated  # if repeated, a rank 0 that has died may have opened it
            if comm.repeated and not trainer.record.leads:
                reporter.take_over()
            warning = start.folder.open(trainer.config, trainer.progress, fresh)
            trainer.record.begin(trainer.progress)
            for line in [*opening_lines(trainer, start, numerics[0][1]), *differences(numerics), warning, last]:
                if line:
                    reporter.say(line)
    reporter.written = comm.broadcast_obj(reporter.logged())


def opening_lines(trainer: Trainer, start: Start, numerics: dict[str, Any]) -> list[str]:
    """The lines that a run prints before it trains."""
    config, comm, progress, data = trainer.config, trainer.comm, trainer.progress, trainer.samples.manifest
    held, how = len(trainer.plan.holdout.validation), {"stratified": ", drawn from each class by seed", "last": ""}
    how |= {} if data.targets == CLASSES else {"stratified": ", drawn by seed"}
    cut = trainer.plan.last_step < config.epochs * trainer.plan.steps_per_epoch
    limit = f", but {config.max_steps:,} in all (--max-steps)" if cut else ""
    lines = [
        f"dpcnn {__version__}: {config.model}, {trainer.network.counted}, on {data.name}: "
        f"{count_of(trainer.plan.training, 'image')} to train, {held:,} to validate{how[config.holdout] * (held > 0)}",
        f"{count_of(comm.size, 'rank')}, {comm.library}; NumPy {numerics['numpy']}, {numerics['blas']}"
        f"{', portable numerics' * (config.numerics == 'portable')}",
        f"{count_of(config.epochs, 'epoch')} of {count_of(trainer.plan.steps_per_epoch, 'step')}{limit}; "
        f"batch {config.batch} in microbatches of {config.microbatch}; {config.optimizer}, "
        f"rate {config.lr:g}; seed {config.seed}; {config.exchange} exchange",
        *([f"augmentation: {augmentations(config)}"] if config.augments else []),
        *([survival(comm)] if comm.size > 1 else []),
        *([f"run folder: {start.folder.path}"] if start.folder.kept else []),
    ]
    if start.path:
        complete = progress.epochs >= trainer.plan.last_epoch
        state = "the run is complete" if complete else f"epoch {progress.epochs + 1}, step {progress.step}"
        lines.append(f"resuming from {start.path.name}: {state}")
        if start.fingerprint != numerics:
            lines.append("the numerics differ from those of the checkpoint: the last bits may too")
    else:
        lines += ["no checkpoint yet: starting from step 0"] * start.resumes
        lines += [trainer.plan.warmup_remark]
    if start.source:
        lines.append(f"no --recipe: the network and all options that are not given are those of {start.source}")
    if trainer.warm:
        lines.append(trainer.warm.remark)
    lines += trainer.plan.holdout.remarks
    if config.microbatch > config.batch:
        lines.append(f"--microbatch {config.microbatch} is above the batch: each batch is one microbatch, of one rank")
    else:
        lines.append(idle_ranks(config, comm.size, trainer.plan.training))
    if reasons := deviations():
        lines.append(f"the bits may not be those of other machines: {reasons}")
    if config.exchange == "allreduce":
        lines.append("allreduce: the last bits of the result depend on the number of ranks")
    return lines


def idle_ranks(config: Config, ranks: int, images: int = MOST_BATCH) -> str:
    """A warning if a batch, from so many images, has fewer microbatches than there are ranks; otherwise empty."""
    count = ceil(min(config.batch, images) / config.microbatch)
    if ranks <= count:
        return ""
    have = "has" if ranks - count == 1 else "have"
    return (
        f"warning: a batch has {count} microbatch{'es' * (count > 1)}, so {ranks - count} of {ranks} ranks {have} no "
        "gradient to compute; give a larger --batch or a smaller --microbatch (both affect the result), or start fewer "
        "ranks"
    )
