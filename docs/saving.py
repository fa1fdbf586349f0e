"""The time that a checkpoint of a large network costs, in performance.md: on one rank, or under mpirun.

The network has 59.6 million parameters, and Adam. Each round takes some steps, as many steps while a checkpoint is
written, as many steps again, and then writes a checkpoint while the ranks wait. The arguments are the number of rounds
and a folder for the checkpoints.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dpcnn  # noqa: F401  before NumPy: it sets BLAS threads and kernels
from dpcnn.data.dataset import find_data, load
from dpcnn.parallel.start import world
from dpcnn.recipe import read_recipe
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

ROUNDS, STEPS = int([*sys.argv, 5][1]), 8


def seconds(*actions: Callable[[], Callable[[], None]]) -> float:
    """The seconds of some actions of the trainer, on all ranks together."""
    comm.barrier()
    started = time.perf_counter()
    for action in actions:
        trainer.transact(action)()
    comm.barrier()
    return time.perf_counter() - started


comm = world()
config = replace(read_recipe(str(Path(__file__).with_name("large.toml"))), microbatch=64, keep=1)
samples = load(find_data("mnist"), "train", comm)
network = config.network(samples.manifest.image_shape, samples.manifest.classes)
with tempfile.TemporaryDirectory(dir=([*sys.argv, None, None])[2]) as folder:
    run = RunFolder(Path(comm.broadcast_obj(folder)) / "run")
    trainer = Trainer(comm, config, network, samples, run, Reporter())
    if comm.rank == 0:
        run.open(config, trainer.progress, fresh=True)
    steps = [trainer.train_step] * STEPS
    seconds(*steps, trainer.save, trainer.finish_saving)
    for number in range(ROUNDS):
        before = seconds(*steps)
        beside = seconds(trainer.save, *steps, trainer.finish_saving)
        writing, after = trainer.saving.seconds, seconds(*steps)
        waiting = seconds(trainer.save, trainer.finish_saving)
        delay = beside - (before + after) / 2
        if comm.rank == 0:
            print(
                f"round {number + 1}: {STEPS} steps {before:.2f} s, {beside:.2f} s with a checkpoint, {after:.2f} s; "
                f"the writing {writing:.2f} s, delay {delay:.2f} s, {delay / writing:.0%} of the writing; "
                f"a checkpoint for which the ranks wait {waiting:.2f} s",
                flush=True,
            )
    comm.barrier()
