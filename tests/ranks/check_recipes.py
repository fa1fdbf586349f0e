"""Run under mpirun: a few steps of every recipe, with small batches, and a hash of all that they leave: rank 0 prints a
line for each."""

import hashlib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import dpcnn.parallel.start
from dpcnn.data.dataset import find_data, load
from dpcnn.recipe import read_recipe
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

STEPS = 2

comm = dpcnn.parallel.start.world()
samples = load(find_data("mnist"), "train", comm)
for path in sorted((files("dpcnn") / "recipes").iterdir(), key=lambda path: path.stem):
    config = replace(read_recipe(str(path)), batch=25, microbatch=7)  # 25 = 3 * 7 + 4
    network = config.network((28, 28, 1), 10)
    trainer = Trainer(comm, config, network, samples, RunFolder(Path()), Reporter())
    for _ in range(STEPS):
        trainer.transact(trainer.train_step)()
    shards = trainer.team.shards(trainer.state.now)
    collected = [trainer.team.exchange.gather(shard) for name, shard in shards.items() if name != "parameters"]
    if comm.rank == 0:
        digest = hashlib.sha256(trainer.params.tobytes())
        for vector in collected:
            digest.update(vector.tobytes())
        print(path.stem, trainer.progress.metrics.loss.hex(), digest.hexdigest(), flush=True)
