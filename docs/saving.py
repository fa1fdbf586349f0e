"""The time that a checkpoint of a large network costs, in performance.md: on one rank, or under mpirun.

The network has 59.6 million parameters, and Adam. Each round takes some steps, as many steps while a checkpoint is
written, and then writes a checkpoint while the ranks wait.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import dpcnn  # noqa: F401  before NumPy: it sets BLAS threads and kernels
from dpcnn.config import read_recipe
from dpcnn.data.dataset import find_data, load
from dpcnn.parallel.start import world
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

ROUNDS, STEPS = 5, 16
LAYERS = [{"kind": "scale"}, {"kind": "flatten"}, {"kind": "linear", "features": 8192}, {"kind": "relu"}]
LAYERS += [{"kind": "linear", "features": 6480}, {"kind": "relu"}, {"kind": "linear", "bias": True}]


def seconds(*actions: Callable[[], Callable[[], None]]) -> float:
    """The seconds of some actions of the trainer, on all ranks together."""
    comm.barrier()
    started = time.perf_counter()
    for action in actions:
        trainer.transact(action)()
    comm.barrier()
    return time.perf_counter() - started


comm = world()
config = replace(read_recipe("mlp-adam"), model="large", layers=LAYERS, batch=128, microbatch=64, keep=1)
samples = load(find_data("mnist"), "train", comm)
network = config.network(samples.manifest.image_shape, samples.manifest.classes)
with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
    run = RunFolder(Path(comm.broadcast_obj(folder)) / "run")
    trainer = Trainer(comm, config, network, samples, run, Reporter())
    if comm.rank == 0:
        run.open(config, trainer.progress, fresh=True)
    steps = [trainer.train_step] * STEPS
    seconds(*steps, trainer.save, trainer.finish_saving)
    for number in range(ROUNDS):
        alone, each = seconds(*steps), [seconds(trainer.train_step) for _ in range(STEPS)]
        begun = seconds(trainer.save)
        beside = seconds(*steps)
        left = seconds(trainer.finish_saving)
        writing = trainer.saving.seconds
        waiting = seconds(trainer.save, trainer.finish_saving)
        delay = begun + beside + left - alone
        if comm.rank == 0:
            print(
                f"round {number + 1}: a step {median(each):.3f} s; the writing {writing:.2f} s beside the steps, "
                f"{waiting:.2f} s alone; delay {delay:.3f} s ({begun:.3f} s to begin, {left:.3f} s to end): "
                f"{delay / writing:.1%} of the writing",
                flush=True,
            )
    comm.barrier()
