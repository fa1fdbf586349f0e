"""Comparisons of speed with PyTorch and JAX: the same first weights, data and batches, in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from math import isclose
from statistics import median

import numpy as np

from dpcnn.base.fields import load_json
from dpcnn.base.numerics import processor
from dpcnn.base.text import count_of, markdown
from dpcnn.errors import LaunchError
from dpcnn.evidence.comparison import Jobs
from dpcnn.evidence.jobs import config_words, run
from dpcnn.evidence.measure import Result


@dataclass(frozen=True)
class Peer:
    """What dpcnn is compared with.

    Attributes:
        package: the package, and the extra of dpcnn that installs it.
        library, title: for messages and for the title of the table.
        settings: the arguments of each setting that is tried in each round; the fastest one counts.
    """

    package: str
    library: str
    title: str
    settings: Mapping[str, Sequence[str]]


TORCH = {"NCHW": ["--layout", "nchw"], "channels-last": ["--layout", "channels-last"]}
ONE_THREAD = {"one thread": ["--layout", "nchw", "--threads", "1"]}  # the fastest setting for very small networks
COMPILED = {"compiled, channels-last": ["--layout", "channels-last", "--compile"]}
JAX = {"NHWC": ["--layout", "NHWC"], "NCHW": ["--layout", "NCHW"]}

PEERS = {
    "torch": Peer("torch", "PyTorch", "PyTorch DDP", TORCH),
    "torch-threads": Peer("torch", "PyTorch", "PyTorch in one process", TORCH | ONE_THREAD),
    "jax": Peer("jax", "JAX", "JAX in one process", JAX),
}
"""The peers by name: DDP has as many processes as dpcnn has ranks; the others have as many threads, if not one."""

COMPARED_STEP = 3
"""The step whose loss is compared, counted from 0: the weights have changed three times before it."""

Rounds = list[dict[str, float]]
"""Images per second, by "dpcnn" and the peer's settings; "limit": the part of the sgemm limit that dpcnn reaches."""


def versus(jobs: Jobs, name: str, ranks: int, batches: Sequence[int], compiled: bool = False) -> tuple[Result, str]:
    """Compare the training of a recipe with a peer's.

    Args:
        name: one of :data:`PEERS`.
        batches: per rank; each microbatch is as large.
        compiled: whether to try torch.compile too, if the peer is PyTorch.

    Returns:
        All speeds, ratios and losses, and the machine; and a table.

    Raises:
        LaunchError: the peer is not installed, or it lacks a layer, a loss, an optimizer or an option.
    """
    peer = PEERS[name]
    if find_spec(peer.package) is None:
        raise LaunchError(
            f"--versus {name}: {peer.library} is not installed; get it: pip install 'dpcnn[{peer.package}]'"
        )
    settings = {**peer.settings, **(COMPILED if compiled else {})}
    rounds: dict[int, Rounds] = {batch: [] for batch in batches}
    losses: dict[int, dict[str, float]] = {}
    machine = {}
    for number in jobs.turns():
        for batch in batches:
            found: dict[str, Result] = {key: {} for key in ("dpcnn", *settings)}
            for key in found if number % 2 else reversed(found):  # none always runs behind the same other
                found[key] = (
                    measure_peer(jobs, name, ranks, batch, settings[key])
                    if key in settings
                    else jobs.measure(ranks, ranks * batch, batch)
                )
            ours = found["dpcnn"]
            speeds = {key: result["images_per_second"] for key, result in found.items()}
            rounds[batch].append({**speeds, "limit": ours["fraction_of_limit"]})
            losses[batch] = {key: result["losses"][COMPARED_STEP] for key, result in found.items()}
            machine = ours["machine"] | {"processor": processor(), peer.package: version(peer.package)}
    ratios = {batch: summary(rounds[batch], list(settings)) for batch in batches}
    text = (
        f"{jobs.config.model} against {peer.title} {machine[peer.package]}; {machine['processor']}; "
        f"NumPy {machine['numpy']}, {machine['blas']}; {count_of(ranks, 'rank')}; "
        f"{count_of(jobs.rounds, 'round')}; images/s are medians"
    )
    lines = [text, "", table(rounds, ratios, losses), *remarks(losses)]
    result = {"rounds": rounds, "ratios": ratios, "losses": losses, "machine": machine, "peer": name, "ranks": ranks}
    return result, "\n".join(lines)


def measure_peer(jobs: Jobs, name: str, ranks: int, batch: int, settings: Sequence[str]) -> Result:
    """The speed and the losses of a peer; ``batch`` is per rank."""
    flags = config_words(jobs.recipe, {**jobs.flags, "batch": ranks * batch, "microbatch": batch})
    processes, threads = (ranks, 1) if name == "torch" else (1, ranks)
    words = [*flags, "--threads", str(threads), "--steps", str(jobs.steps), *settings]
    if PEERS[name].package == "torch":
        start = ["--standalone", "--nproc-per-node", str(processes), "-m", "dpcnn.evidence.peers.torch_ddp"]
        output = run("torch.distributed.run", *start, *words)
    else:
        output = run("dpcnn.evidence.peers.jax_run", *words)
    result: Result = load_json(output.strip().splitlines()[-1])
    return result


def summary(rounds: Rounds, settings: Sequence[str]) -> Result:
    """The ratio in each round of dpcnn to the fastest of the peer's settings, its median, and the median's interval."""
    ratios = [speeds["dpcnn"] / max(speeds[name] for name in settings) for speeds in rounds]
    return {"by_round": ratios, "median": median(ratios), "interval": median_interval(ratios)}


def median_interval(values: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % interval of the median of independent values, by the bootstrap with percentiles.

    Efron and Tibshirani, "An introduction to the bootstrap" (1993), section 13.3. The draws have a fixed seed, so the
    same values give the same interval.
    """
    words = np.random.Philox(key=0).random_raw((draws, len(values)))
    medians = np.median(np.array(values)[words % np.uint64(len(values))], axis=1)  # (draws,)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)


def table(rounds: Mapping[int, Rounds], ratios: Mapping[int, Result], losses: Mapping[int, Mapping[str, float]]) -> str:
    """A row for each batch."""
    names = list(next(iter(losses.values())))
    rows = []
    for batch, of_batch in rounds.items():
        speeds = [f"{median(each[name] for each in of_batch):,.0f}" for name in names]
        by_round, (low, high) = ratios[batch]["by_round"], ratios[batch]["interval"]
        ratio = (
            f"{ratios[batch]['median']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{min(by_round):.2f} to {max(by_round):.2f}",
        )
        limit = f"{median(each['limit'] for each in of_batch):.0%}"
        loss = " / ".join(f"{losses[batch][name]:.4f}" for name in names[:2])
        rows.append((batch, *speeds, *ratio, limit, loss))
    header = ("batch per rank", *names, "ratio, median", "95 % interval", "range", "of the sgemm limit")
    return markdown((*header, f"loss after {COMPARED_STEP} steps"), rows)


def remarks(losses: Mapping[int, Mapping[str, float]]) -> list[str]:
    """A warning if the losses after the same steps differ by more than 1 %."""
    for batch, of_batch in losses.items():
        ours, *theirs = of_batch.values()
        if not all(isclose(ours, loss, rel_tol=0.01) for loss in theirs):
            return [
                "",
                f"warning: with a batch of {batch} per rank, the losses after {COMPARED_STEP} steps differ by more "
                "than 1 %: unless the network has dropout, or batch normalisation over other batches (--versus "
                "torch-threads, jax), these are not the same training",
            ]
    return []
