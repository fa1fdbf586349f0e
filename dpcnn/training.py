"""The command that trains a network, from its arguments to its last line."""

import json
import os
import platform
import resource
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpcnn import __version__
from dpcnn.board import FOLDER, Board, writer_class
from dpcnn.checkpoint import weights_sha256
from dpcnn.cli import DONE, RESUMABLE, Parser, add_config_flags, parse
from dpcnn.console import Console, Report
from dpcnn.data.samples import find_data, load
from dpcnn.data.stage import stage
from dpcnn.errors import CheckpointError
from dpcnn.fingerprint import differences, fingerprint
from dpcnn.metrics import epoch_rows, evaluated
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.shared import share_or_part
from dpcnn.parallel.watch import Watch
from dpcnn.plots import draw_curves
from dpcnn.resume import Start, choose_config, find_start
from dpcnn.stopping import Stop, ignore, job_end, listen
from dpcnn.tables import text
from dpcnn.trace import clock_offset, merged
from dpcnn.trainer import Trainer

TRACED = 100_000  # stretches of a rank's time in a trace


def train(comm: Alone, argv: Sequence[str] | None) -> int:
    """Train, on every rank of ``comm``, as the command line says."""
    started = time.time()
    report = Console() if comm.rank == 0 else Report()
    with comm.together():
        options = parse(training_parser(), argv, comm)
        stop = Stop(job_end(os.environ, started, options.walltime))
    listen(stop, comm.abort)
    apart = share_or_part(comm)
    if apart:
        report.say(apart)
    watch = Watch(comm, options.stall_timeout, report.say)
    trainer = set_up(comm, options, report)
    trainer.stop = stop
    if watch.warning:
        report.say(watch.warning)
    watch.follow(trainer.spans, lambda: trainer.cursor.step)
    offset = clock_offset(comm) if options.trace else 0.0
    trainer.spans.record(TRACED * options.trace)
    finished = trainer.fit()
    if options.trace:
        write_trace(trainer, report, offset)
    peak = write_times(trainer, report)
    if finished:
        finish(trainer, report, peak, not options.no_curves)
    else:
        rank, why = next((rank, why) for rank, why in enumerate(comm.allgather_obj(stop.reason)) if why)
        report.say(
            f"stopped at step {trainer.cursor.step}: {why} (rank {rank}); go on with --resume --out {trainer.run.path}"
        )
    ignore()  # all is saved: the status should say so, and not how Python was ended
    watch.close(comm.finalize)
    return DONE if finished else RESUMABLE


def training_parser() -> Parser:
    """The flags of a training."""
    parser = Parser(prog="dpcnn.train", description="Train a network: mpirun -n 4 python -m dpcnn.train")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="options to start from (default simple-cnn)")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default runs/RECIPE-DATE-TIME)")
    parser.add_argument(
        "--resume",
        metavar="CHECKPOINT|auto",
        nargs="?",
        const="",
        help="go on with a run: from this checkpoint, or from the last one of --out or of the newest run; "
        "auto: go on with the run of --out if there is one, else begin it",
    )
    parser.add_argument(
        "--walltime",
        default="",
        metavar="TIME",
        help="stop in time for a checkpoint before so much time has passed: minutes, M:S, H:M:S or D-H:M:S "
        "(default: until the end that Slurm, PBS or DPCNN_JOB_END tells)",
    )
    parser.add_argument(
        "--stage",
        type=Path,
        metavar="DIR",
        help="copy the data set there first, once a node: to a disk of the node's own",
    )
    parser.add_argument("--no-curves", action="store_true", help="draw no picture at the end")
    parser.add_argument(
        "--tensorboard", action="store_true", help=f"also write event files for TensorBoard, to {FOLDER}/ of the run"
    )
    parser.add_argument(
        "--trace",
        action="store_true",
        help=f"write trace.json: where each rank's time goes, on one time line, for {TRACED:,} stretches of each rank",
    )
    parser.add_argument(
        "--stall-timeout",
        type=seconds,
        default=600.0,
        metavar="S",
        help="end the job when a rank makes no progress for so many seconds; 0: never (default 600)",
    )
    add_config_flags(parser)
    return parser


def seconds(text: str) -> float:
    """A number of seconds, 0 or more: for argparse."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def set_up(comm: Alone, options: Namespace, report: Report) -> Trainer:
    """Everything before the first step: options, data, network, state, and last the run's folder.

    Nothing is written before all that the user gave has been looked at.
    """
    start = Start()
    with comm.together():
        if comm.rank == 0:
            if options.tensorboard:
                writer_class()
            start = find_start(options)
    place, stored = comm.broadcast_obj([str(start.folder.path), start.config])
    with comm.together():
        config = choose_config(options, stored, place)
        data = find_data(config.data)
    if options.stage:
        data = stage(data, options.stage, comm)
    samples = load(data, "train", comm)
    with comm.together():
        if start.checkpoint and start.checkpoint.data != samples.manifest.checksum:
            raise CheckpointError(f"{start.path}: made with other data than {data}; give --data the one it knows")
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    trainer = Trainer(comm, config, network, samples, start.folder, report)
    if config.test:
        trainer.test = load(data, "test", comm)
    if comm.broadcast_obj(start.checkpoint is not None):
        trainer.restore(start.checkpoint)
    numerics = comm.allgather_obj([platform.node(), fingerprint()])
    with comm.together():
        if isinstance(report, Console):
            warning = start.folder.open(config, trainer.cursor, start.config is None, start.newest)
            report.log_to(start.folder.log)
            if options.tensorboard:
                report.show_on(Board(start.folder.path, trainer.cursor.events))
            for line in [*opening_lines(trainer, start, numerics[0][1]), *differences(numerics), warning]:
                if line:
                    report.say(line)
    return trainer


def opening_lines(trainer: Trainer, start: Start, numerics: dict[str, Any]) -> list[str]:
    """What a run says of itself before it trains."""
    config, comm, cursor, data = trainer.config, trainer.comm, trainer.cursor, trainer.samples.manifest
    held, how = len(trainer.holdout.validation), {"stratified": ", drawn from each class by seed", "last": ""}
    lines = [
        f"dpcnn {__version__}: {config.model}, {trainer.network.size:,} parameters, on {data.name}: "
        f"{trainer.training:,} images to train, {held:,} to validate{how[config.holdout] * (held > 0)}",
        f"{comm.size} rank{'s' * (comm.size > 1)}, {comm.library}; NumPy {numerics['numpy']}, {numerics['blas']}",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps; batch {config.batch} in microbatches of "
        f"{config.microbatch}; {config.optimizer}, rate {config.lr:g}; seed {config.seed}; {config.exchange} exchange",
        f"run folder: {start.folder.path}",
    ]
    if start.path:
        complete = cursor.epochs >= trainer.last_epoch
        place = "the run is complete" if complete else f"epoch {cursor.epochs + 1}, step {cursor.step}"
        lines.append(f"resuming from {start.path.name}: {place}")
        if start.checkpoint and start.checkpoint.fingerprint != numerics:
            lines.append("the numerics differ from those of the checkpoint: the last bits may too")
    elif start.config is not None:
        lines.append("no checkpoint yet: starting from step 0")
    lines += trainer.holdout.remarks
    if config.microbatch > config.batch:
        lines.append(f"--microbatch {config.microbatch} is above the batch: each batch is one microbatch, of one rank")
    if config.exchange == "allreduce":
        lines.append("allreduce: the last bits of the result depend on the number of ranks")
    return lines


def write_trace(trainer: Trainer, report: Report, offset: float) -> None:
    """Write all ranks' trace, and say where; ``offset`` is that of this rank's clock."""
    trace = merged(trainer.comm, trainer.spans, offset)
    with trainer.writing("report"):
        if trace is not None:
            trainer.run.write(trainer.run.trace, trace)
            report.say(f"trace: {trainer.run.trace}; open it in ui.perfetto.dev or chrome://tracing")


def write_times(trainer: Trainer, report: Report) -> float:
    """Write where each rank's time went, say who was waited for, and return the ranks' highest peak memory in MB."""
    comm = trainer.comm
    facts = {
        "host": platform.node(),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "seconds": trainer.spans.rounded(),
        "waited_for": round(float(trainer.waited_for[comm.rank]), 3),
    }
    ranks = comm.allgather_obj(facts)
    with trainer.writing("report"):
        if comm.rank == 0:
            if comm.size > 1:
                report.say(straggler_bill(ranks))
            times = json.dumps({"mpi": comm.library, "ranks": ranks}, indent=1)
            trainer.run.write(trainer.run.times, f"{times}\n".encode())
    return float(max(rank["peak_memory_mb"] for rank in ranks))


def finish(trainer: Trainer, report: Report, peak: float, curves: bool) -> None:
    """Record the end of a run, draw the curves if they are wanted, print the table and the last line."""
    comm, cursor, folder = trainer.comm, trainer.cursor, trainer.run.path
    best = cursor.best(trainer.config.monitor)
    assert best is not None, "a finished run has an epoch"
    with trainer.averaged():
        sha256 = weights_sha256(trainer.vector)
    trainer.record(
        {
            "event": "end",
            "steps": cursor.step,
            "seconds": round(cursor.seconds, 3),
            "weights_sha256": sha256,
            **({"best_validation_accuracy": best["validation_accuracy"]} if "validation_accuracy" in best else {}),
        }
    )
    with trainer.writing("report"):
        if comm.rank == 0:
            report.say(text(*epoch_rows(cursor.epoch_events)))
            if curves:
                report.say(draw_curves([folder], folder / "curves"))
            last = cursor.epoch_events[-1]
            speed = trainer.images(cursor.step) / sum(event["seconds"] for event in cursor.epoch_events)
            results = [f"{kind} accuracy {last[f'{kind}_accuracy']:.4f}" for kind in evaluated(last) or ["train"]]
            if "validation_accuracy" in best:
                results[0] += f" (best {best['validation_accuracy']:.4f}, epoch {best['epoch']})"
            report.say(
                f"{', '.join(results)}, {cursor.seconds:.1f} s, {speed:,.0f} images/s, "
                f"peak memory {peak:.0f} MB a rank, {folder}, weights {sha256}"
            )


def straggler_bill(ranks: Sequence[dict[str, Any]]) -> str:
    """How much of their time the ranks have waited, and for whom most."""
    waiting = sum(rank["seconds"]["waiting"] for rank in ranks)
    spent = sum(sum(rank["seconds"].values()) for rank in ranks)
    billed = sum(rank["waited_for"] for rank in ranks)
    slowest = max(range(len(ranks)), key=lambda rank: ranks[rank]["waited_for"])
    line = f"the ranks waited {waiting / max(spent, 1e-9):.1%} of their time"  # a run that was complete spends none
    if billed <= 0:
        return line
    share = ranks[slowest]["waited_for"] / billed
    return f"{line}; where they waited for one, it was for rank {slowest} on {ranks[slowest]['host']} in {share:.0%}"
