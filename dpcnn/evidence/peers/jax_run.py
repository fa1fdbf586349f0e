"""JAX's speed with the network, data and batches of a dpcnn run, in one process with several threads::

    python -m dpcnn.evidence.peers.jax_run --recipe lenet5 --batch 128 --threads 2

The options of the run are those of a training. Without augmentation, all batches lie in memory before the first step,
as in torch_ddp.py. Prints a JSON object: images per second, and the mean loss of each batch of the warm-up.
"""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import jax

from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.dataset import find_data, load
from dpcnn.errors import LaunchError
from dpcnn.evidence.peers.jax_training import LAYOUTS, JaxTraining
from dpcnn.evidence.peers.speed import keep_memory, measure
from dpcnn.flags import add_config_flags, override
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.evidence.peers.jax_run", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of XLA")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layout", choices=LAYOUTS, default="NHWC")
    parser.add_argument("--recipe", default="simple-cnn")
    add_config_flags(parser)
    return parser


def start_threads(count: int) -> None:
    """Start XLA with so many threads, before anything else is computed.

    XLA reads NPROC; it has no flag for this. The kernel places the threads on any cores, as it does with dpcnn's ranks.

    Raises:
        LaunchError: XLA has started another number.
    """
    os.environ["NPROC"] = str(count)
    jax.devices("cpu")
    names = [(task / "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()]
    if (found := names.count("tf_XLAEigen")) != count:
        raise LaunchError(f"XLA has started {found} threads instead of {count}; install another version of JAX")


def command(comm: SerialComm, options: Namespace) -> int:
    """Measure the training of the command line."""
    keep_memory()
    jax.config.update("jax_platforms", "cpu")
    start_threads(options.threads)
    config = override(read_recipe(options.recipe), options)
    training = JaxTraining(config, load(find_data(config.data), "train", comm), options.layout)
    speed, losses = measure(training, options.steps, lambda: jax.block_until_ready(training.state))
    print(json.dumps({"images_per_second": speed, "losses": [float(loss) for loss in losses]}), flush=True)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(command, make_parser, comm=SerialComm()))
