"""Measurements of a job by its ranks: speed, time by phase, memory."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dpcnn.base.machine import peak_memory
from dpcnn.base.numerics import check, fingerprint, processor
from dpcnn.base.text import count_of, markdown
from dpcnn.base.timing import STEP_PHASES, Timer
from dpcnn.cluster.probes import sgemm_speed
from dpcnn.config import Config
from dpcnn.data.dataset import Samples, find_data, load
from dpcnn.nn.network import Network
from dpcnn.optim.optimizers import Adam
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.exact import ExactExchange
from dpcnn.parallel.shared import share_or_part
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.fitted import fitted
from dpcnn.training.setup import check_memory
from dpcnn.training.state import PARAMETERS, State
from dpcnn.training.trainer import Trainer

WARM_UP = 10  # steps; the peers take as many
PEAK_SIDE, PEAK_SECONDS = 1024, 0.5

Result = dict[str, Any]


def measure_job(
    comm: SerialComm, config: Config, steps: int, exchange_only: bool, say: Callable[[str], None]
) -> tuple[Result, str]:
    """Measure this job, on every rank of ``comm``: a training, unless ``exchange_only``, and the exchanges.

    Rank 0 prints a warning if ranks can't share memory.

    Returns:
        All measurements, and their text.
    """
    apart = share_or_part(comm)
    if apart and comm.rank == 0:
        say(apart)
    with comm.fail_together():
        folder = find_data(config.data)
    samples = load(folder, "train", comm)
    with comm.fail_together():
        check(config.numerics)
        config, network = fitted(config, samples.manifest)
    nodes = comm.allgather_obj(comm.node().rank).count(0)
    result: Result = {"ranks": comm.size, "nodes": nodes, "parameters": network.size}
    if not exchange_only:
        result |= measure(comm, config, network, samples, steps)
    result["exchange"] = compare_exchanges(comm, network.size, min(10, steps))
    return result, job_text(result)


def measure(comm: SerialComm, config: Config, network: Network, samples: Samples, steps: int) -> Result:
    """Train for some steps on every rank of ``comm``, and return the measurements, the same on every rank."""
    with TemporaryDirectory(prefix="dpcnn-bench-") as work:
        folder = RunFolder(Path(work))
        check_memory(comm, config, network, len(samples), folder)
        trainer = Trainer(comm, config, network, samples, folder, Reporter())
        peak = sgemm_peak(comm)
        losses = warm_up(trainer)
        seconds = time_steps(comm, trainer, steps)
        images = trainer.plan.images(WARM_UP + steps, WARM_UP)
        peak = max(peak, sgemm_peak(comm))
        shares = [trainer.timer.seconds[phase] / seconds for phase in STEP_PHASES]
    speed = images / seconds
    return {
        "config": config.as_dict(),
        "images_per_second": speed,
        "seconds_a_step": seconds / steps,
        "images_a_step": images / steps,
        "losses": losses,
        "shares": [dict(zip(STEP_PHASES, row.tolist(), strict=True)) for row in comm.allgather(np.array(shares))],
        "flops_an_image": network.flops,
        "activations_an_image": network.activations,
        "products": [{"rows": product.C, "columns": product.F} for product in network.products.values()],
        "sgemm_peak": peak,
        "fraction_of_limit": speed * network.flops / peak,
        "memory": comm.allgather_obj(memory()),
        "machine": {"processor": processor(), "mpi": comm.library, **fingerprint()},
    }


def warm_up(trainer: Trainer) -> list[float]:
    """Take some steps, and return the mean loss of the batch of each."""
    losses, before = [], 0.0
    for number in range(WARM_UP):
        step(trainer)
        metrics = trainer.progress.metrics  # of all steps so far
        losses.append((metrics.loss - before) / trainer.plan.images(number + 1, number))
        before = metrics.loss
    return losses


def step(trainer: Trainer) -> None:
    """Take a step; the epochs follow each other without their evaluations."""
    trainer.progress.epochs = trainer.plan.epoch(trainer.progress.step)
    with np.errstate(all="ignore"):
        trainer.transact(trainer.train_step)()


def time_steps(comm: SerialComm, trainer: Trainer, steps: int) -> float:
    """The seconds of some steps."""
    trainer.timer.seconds.clear()
    return timed(comm, partial(step, trainer), steps)


def timed(comm: SerialComm, action: Callable[[], Any], times: int) -> float:
    """Seconds until every rank has done an action ``times`` times; the same on every rank."""
    comm.barrier()
    started = time.perf_counter()
    for _ in range(times):
        action()
    comm.barrier()
    return float(max(comm.allgather_obj(time.perf_counter() - started)))


def sgemm_peak(comm: SerialComm) -> float:
    """Floating-point operations per second of all ranks together, in products of square float32 matrices."""
    comm.barrier()
    return float(sum(comm.allgather_obj(sgemm_speed(PEAK_SIDE, PEAK_SECONDS))))


def memory() -> dict[str, float]:
    """The memory of this process in MB: its peak, and the current memory that is not shared with other ranks."""
    own = 0
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Private_"):
            own += int(line.split()[1])
    return {"peak": peak_memory(), "own": own / 1024}


def compare_exchanges(comm: SerialComm, size: int, times: int, rounds: int = 9) -> Result:
    """Measure, in turns, the exact exchange with Adam on shards, and MPI_Allreduce with all of Adam on every rank.

    Args:
        size: the number of parameters.
        times: the number of repetitions of each in a round.

    Returns:
        Milliseconds of each round, and the median ratio.
    """
    exchange, adam = ExactExchange(comm, size, Timer()), Adam()
    with comm.fail_together():  # a node may have too little memory
        state = State(Adam.state_names, size, exchange.node, exchange.elements)
        state.renew(exchange.node)
    own, whole = state.within(exchange.shard), adam.zeros(size)
    exchange.sum([1] * comm.size, lambda number, out, keep: out.fill(0))  # touches the memory; sums of zeros stay zero
    params, gradient = np.zeros((2, size), np.float32)

    def exact() -> None:
        grads = exchange.sum([1] * comm.size, lambda number, out, keep: None)
        before = [state.now[PARAMETERS][exchange.shard], *(state.now[name][own] for name in Adam.state_names)]
        after = {name: state.next[name][own] for name in Adam.state_names}
        adam.update(state.next[PARAMETERS][exchange.shard], grads, after, 1, 1e-3, before=before)
        exchange.publish(state.next[PARAMETERS])
        state.commit()

    def allreduce() -> None:
        comm.allreduce(gradient)
        adam.update(params, gradient, whole, 1, 1e-3)

    milliseconds: dict[str, list[float]] = {"exact": [], "allreduce": []}
    timed(comm, exact, 2)
    timed(comm, allreduce, 2)
    for _ in range(rounds):
        milliseconds["exact"].append(1e3 * timed(comm, exact, times) / times)
        milliseconds["allreduce"].append(1e3 * timed(comm, allreduce, times) / times)
    ratios = [one / other for one, other in zip(milliseconds["exact"], milliseconds["allreduce"], strict=True)]
    return {"milliseconds": milliseconds, "ratios": ratios, "ratio": median(ratios)}


def job_text(result: Result) -> str:
    """The measurements of a job in words and a table."""
    exchange = exchange_line(result["ranks"], result["exchange"])
    if "seconds_a_step" not in result:
        return exchange
    return "\n".join([*training_lines(result), "", rank_table(result), "", exchange])


def training_lines(result: Result) -> list[str]:
    """The machine, and the speed of the training."""
    machine, config, images = result["machine"], result["config"], result["images_a_step"]
    rest = "" if images == config["batch"] else f" of {images:,.1f} images on average: an epoch ends in a smaller batch"
    return [
        f"{machine['processor']}; {machine['mpi']}; NumPy {machine['numpy']}, {machine['blas']}",
        f"{config['model']}, {count_of(result['ranks'], 'rank')}, batch {config['batch']} in microbatches of "
        f"{config['microbatch']}: {result['images_per_second']:,.0f} images/s, "
        f"{1e3 * result['seconds_a_step']:.1f} ms per step{rest}",
        f"sgemm peak of all ranks {result['sgemm_peak'] / 1e9:.0f} GFLOP/s; {result['flops_an_image'] / 1e6:.1f} MFLOP "
        f"per image by direct convolution; {result['fraction_of_limit']:.0%} of that limit",
    ]


def rank_table(result: Result) -> str:
    """A row for each rank: the fraction of its time in each phase, and its memory."""
    rows = []
    for rank, (shares, used) in enumerate(zip(result["shares"], result["memory"], strict=True)):
        times = (f"{shares[phase]:.1%}" for phase in STEP_PHASES)
        rows.append((rank, *times, f"{used['peak']:.0f} MB", f"{used['own']:.0f} MB"))
    return markdown(("rank", *STEP_PHASES, "peak memory", "private memory"), rows)


def exchange_line(ranks: int, times: Result) -> str:
    """The comparison of the exchanges in words."""
    exact, allreduce = (median(times["milliseconds"][key]) for key in ("exact", "allreduce"))
    least, most = min(times["ratios"]), max(times["ratios"])
    return (
        f"{count_of(ranks, 'rank')}: exact exchange and Adam on shards {exact:.2f} ms, MPI_Allreduce and Adam on every "
        f"rank {allreduce:.2f} ms; ratio {times['ratio']:.2f} ({least:.2f} to {most:.2f})"
    )
