"""PyTorch's speed with the network, data and batches of a dpcnn run, on several processes or threads::

    torchrun --standalone --nproc-per-node 2 -m dpcnn.evidence.peers.torch_ddp --recipe lenet5 --batch 128

The options of the run are those of a training; --batch is that of all processes. Several processes train with DDP over
gloo, which sends gradients from its buckets without copies, knows that the graph does not change, and does not send the
running means of batch normalisation. Without augmentation, all batches lie in memory before the first step: PyTorch's
loader costs nothing. Prints a JSON object: images per second, and the mean loss of each batch of the warm-up.
"""

import json
import os
import sys
from argparse import Namespace
from functools import partial
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dpcnn.base.text import count_of
from dpcnn.cli import DONE, Parser, run_command
from dpcnn.data.dataset import find_data, load
from dpcnn.errors import ConfigError
from dpcnn.evidence.peers.speed import keep_memory, measure
from dpcnn.evidence.peers.torch_training import LAYOUTS, TorchTraining
from dpcnn.flags import add_config_flags, override
from dpcnn.parallel.comm import SerialComm
from dpcnn.recipe import read_recipe


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="dpcnn.evidence.peers.torch_ddp", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--layout", choices=LAYOUTS, default="channels-last")
    parser.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    parser.add_argument("--recipe", default="simple-cnn")
    add_config_flags(parser)
    return parser


def command(comm: SerialComm, options: Namespace) -> NoReturn:
    """Measure the training of the command line on every process of this job, and end it."""
    keep_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(int(os.environ["RANK"]))  # for dropout
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    ddp = partial(DistributedDataParallel, gradient_as_bucket_view=True, static_graph=True, broadcast_buffers=False)

    def wrap(net: nn.Module) -> nn.Module:
        net = torch.compile(net) if options.compile else net
        return ddp(net) if ranks > 1 else net

    config = override(read_recipe(options.recipe), options)
    samples = load(find_data(config.data), "train", comm)
    training = TorchTraining(config, samples, options.layout, dist.get_rank(), ranks, wrap)
    if 0 < (rest := training.plan.training % config.batch) < ranks:
        raise ConfigError(
            f"an epoch's last batch has {count_of(rest, 'image')} for {ranks} processes; PyTorch needs one for each: "
            f"give --validation {len(samples) - training.plan.training + rest}"
        )
    speed, losses = measure(training, options.steps, dist.barrier)
    dist.all_reduce(mean := torch.stack(losses) / ranks)
    if dist.get_rank() == 0:
        print(json.dumps({"images_per_second": speed, "losses": mean.tolist()}), flush=True)
    dist.barrier()
    os._exit(DONE)  # an orderly end of gloo's threads sometimes aborts the process


if __name__ == "__main__":
    sys.exit(run_command(command, make_parser, comm=SerialComm()))
