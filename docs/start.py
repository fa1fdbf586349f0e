"""The time from the command to the first step of a training on 4 ranks, in performance.md.

It alternates with a program that only imports NumPy, h5py and MPI, and waits for all ranks. The arguments are the
number of rounds and options of a training.
"""

import subprocess
import sys
import tempfile
import time
from statistics import median

ROUNDS, OPTIONS = int([*sys.argv, 9][1]), sys.argv[2:]
RANKS = "4"

IMPORTS = """
import time, numpy, h5py
from mpi4py import MPI
MPI.COMM_WORLD.Barrier()
if MPI.COMM_WORLD.rank == 0: print("ready", time.time())
"""
TRAINING = """
import sys, time
from dpcnn import train
from dpcnn.training.trainer import Trainer

def timed(trainer):
    if trainer.comm.rank == 0: print("ready", time.time())
    return step(trainer)

step, Trainer.train_step = Trainer.train_step, timed
sys.exit(train.main(sys.argv[1:]))
"""


def seconds(program: str, *words: str) -> float:
    """Seconds from the command until rank 0 says that it is ready."""
    command, started = ["mpirun", "-n", RANKS, sys.executable, "-c", program, *words], time.time()
    job = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (ready,) = (float(line.split()[1]) for line in job.stdout.splitlines() if line.startswith("ready "))
    return ready - started


times: dict[str, list[float]] = {"imports": [], "training": []}
for number in range(ROUNDS + 1):  # the first round fills the caches of the system
    with tempfile.TemporaryDirectory() as folder:
        words = ["--max-steps", "1", "--no-curves", "--out", f"{folder}/run", *OPTIONS]
        found = {"imports": seconds(IMPORTS), "training": seconds(TRAINING, *words)}
    for name in times if number else ():
        times[name].append(found[name])
for name, values in times.items():
    print(f"{name}: {median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")
