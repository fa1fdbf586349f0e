"""A training from its arguments to its last line."""

import os
import time
from argparse import Namespace
from pathlib import Path

from dpcnn.base import output
from dpcnn.cli import DONE, RESUMABLE, Parser, add_verify
from dpcnn.cluster.stopping import Stop, ignore, job_end, listen
from dpcnn.cluster.watch import Watch
from dpcnn.errors import ConfigError
from dpcnn.flags import add_config_flags
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.shared import share_or_part
from dpcnn.runs.console import Console
from dpcnn.runs.folder import TENSORBOARD
from dpcnn.runs.trace import clock_offset
from dpcnn.training.setup import check_same, open_run, set_up
from dpcnn.training.summary import Draw, already_complete, finish, say_stopped
from dpcnn.training.times import write_times, write_trace

TRACED = 100_000  # intervals of time per rank in a trace


def train(comm: SerialComm, options: Namespace, draw: Draw, started: float) -> int:
    """Train on every rank of ``comm``.

    Args:
        draw: draws the curves at the end.
        started: when this process started, in seconds since 1970.
    """
    reporter = Console(lambda: comm.rank == 0)
    comm.on_death(reporter.retry)
    stop = comm.transact(lambda: _stop(comm, options, started))
    listen(stop, comm.abort)
    apart = comm.transact(lambda: share_or_part(comm))
    if apart:
        reporter.say(apart)
        reporter.commit()
    comm.survives = comm.survives and options.survive == "yes"
    watch = comm.transact(lambda: Watch(comm, options.stall_timeout, reporter.warn))
    comm.on_death(watch.renew)
    trainer, start = comm.transact(lambda: set_up(comm, options, reporter, stop))
    comm.on_death(trainer.assemble)
    if not options.tensorboard and comm.transact(lambda: already_complete(trainer, start, reporter, options.trace)):
        return _leave(comm, watch, DONE)
    comm.transact(lambda: open_run(trainer, start, reporter, watch.warning))
    reporter.commit()
    watch.follow(trainer.timer, lambda: trainer.progress.step)
    offset = comm.transact(lambda: clock_offset(comm)) if options.trace else 0.0
    trainer.timer.record(TRACED * options.trace)
    finished = trainer.fit()
    if options.trace:
        trainer.transact(lambda: write_trace(trainer, reporter, offset))
    peak = trainer.transact(lambda: write_times(trainer, reporter))
    if finished:
        trainer.transact(lambda: finish(trainer, reporter, peak, None if options.no_curves else draw))
    else:
        trainer.transact(lambda: say_stopped(trainer, reporter))
    return _leave(comm, watch, DONE if finished else RESUMABLE)


def _leave(comm: SerialComm, watch: Watch, status: int) -> int:
    ignore()  # everything is saved: a signal must not change the exit status now
    output.flush()  # the run is in its folder, also where nobody can read this
    watch.close(comm.finalize)
    return status


TOGETHER = "survive", "min_ranks", "stall_timeout", "verify", "tensorboard", "trace"
"""Options that decide what the ranks do together."""


def _stop(comm: SerialComm, options: Namespace, started: float) -> Stop:
    check_same(comm, {name: getattr(options, name) for name in TOGETHER} | {"stage": options.stage is not None})
    with comm.fail_together():
        check_min_ranks(options.min_ranks, options.survive, 0 if comm.repeated else comm.size)
        end = job_end(os.environ, started, options.walltime)
        return Stop(None if end is None else end - time.time())


def check_min_ranks(least: int, survive: str, ranks: int) -> None:
    """Check ``--min-ranks`` for a job of so many ranks; 0: some of the ranks have died.

    Raises:
        ConfigError: it is wrong, or without effect.
    """
    if least < 1:
        raise ConfigError(f"--min-ranks: must be at least 1, not {least}")
    if least > 1 and survive == "no":
        raise ConfigError("--min-ranks: has no effect with --survive no; leave it out")
    if ranks and least > ranks:
        raise ConfigError(
            f"--min-ranks: {least}, but this job has {ranks} in all; start more ranks, or give a smaller number"
        )


def training_parser() -> Parser:
    """The flags of a training."""
    parser = Parser(prog="dpcnn train", description="Train a network, or resume a run: mpirun -n 4 dpcnn train")
    parser.add_argument(
        "--recipe", metavar="NAME|FILE", help="options to start from (default simple-cnn, or those of --init-from)"
    )
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default runs/RECIPE-DATE-TIME)")
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT|auto",
        nargs="?",
        const="",
        help="resume a run: from this checkpoint, or else from the last one of --out or of the newest run; "
        "auto: resume the run in --out if there is one, otherwise start it",
    )
    parser.add_argument(
        "--walltime",
        default="",
        metavar="TIME",
        help="time limit; the run stops before it, with a checkpoint: minutes, M:S, H:M:S or D-H:M:S "
        "(default: the limit given by Slurm, PBS or DPCNN_JOB_END)",
    )
    parser.add_argument(
        "--stage",
        type=Path,
        metavar="DIR",
        help="copy the data set to this folder first, once per node, unpacked: for a local disk, or a data set larger "
        "than memory",
    )
    add_verify(parser)
    parser.add_argument("--no-curves", action="store_true", help="do not draw the curves at the end")
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help=f"also write event files for TensorBoard, to {TENSORBOARD}/ of the run",
    )
    parser.add_argument(
        "--trace",
        action="store_true",
        help=f"write trace.json: the phases of all ranks on one time line, at most {TRACED:,} intervals per rank",
    )
    parser.add_argument(
        "--stall-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="kill a rank that makes no progress for this many seconds, or end the job if it does not survive this; "
        "0: never (default 600)",
    )
    parser.add_argument(
        "--survive",
        choices=["yes", "no"],
        default="yes",
        help="go on when a rank dies, if the MPI library can (default yes)",
    )
    parser.add_argument(
        "--min-ranks",
        type=int,
        default=1,
        metavar="N",
        help="if fewer ranks than this survive, stop with a checkpoint and status 75 (default 1)",
    )
    add_config_flags(parser)
    return parser


def seconds(text: str) -> float:
    """A number of seconds, 0 or more: for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value
