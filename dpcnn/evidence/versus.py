"""Comparisons of speed with PyTorch: the same first weights, data and batches, in turns."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from math import isclose
from statistics import median

import numpy as np

from dpcnn.base.fields import load_json
from dpcnn.base.text import markdown
from dpcnn.errors import LaunchError
from dpcnn.evidence.comparison import Jobs
from dpcnn.evidence.jobs import config_words, run
from dpcnn.evidence.measure import Result

PEERS = {"torch": "PyTorch DDP", "torch-threads": "PyTorch in one process"}
"""What dpcnn is compared with: as many processes, or as many threads, as dpcnn has ranks."""

SETTINGS = {"NCHW": ["--layout", "nchw"], "channels-last": ["--layout", "channels-last"]}
COMPILED = {"compiled, channels-last": ["--layout", "channels-last", "--compile"]}
"""The settings of PyTorch that are tried in each round; the fastest one counts."""

COMPARED_STEP = 3
"""The step whose loss is compared, counted from 0: the weights have changed three times before it."""

Rounds = list[dict[str, float]]
"""Images per second, by "dpcnn" and PyTorch's settings; "limit": the fraction of the sgemm limit that dpcnn reaches."""


def versus(jobs: Jobs, peer: str, ranks: int, batches: Sequence[int], compiled: bool = False) -> tuple[Result, str]:
    """Compare the training of a recipe with PyTorch's.

    Args:
        peer: one of :data:`PEERS`.
        batches: per rank; each microbatch is as large.
        compiled: whether to try torch.compile too.

    Returns:
        All speeds, ratios and losses, and the machine; and a table.

    Raises:
        LaunchError: PyTorch is not installed, or it lacks a layer, a loss, an optimizer or an option.
    """
    if find_spec("torch") is None:
        raise LaunchError(f"--versus {peer}: PyTorch is not installed; get it: pip install 'dpcnn[torch]'")
    settings = SETTINGS | (COMPILED if compiled else {})
    rounds: dict[int, Rounds] = {batch: [] for batch in batches}
    losses: dict[int, dict[str, float]] = {}
    machine = {}
    for _ in jobs.turns():
        for batch in batches:
            theirs = {name: measure_torch(jobs, peer, ranks, batch, more) for name, more in settings.items()}
            ours = jobs.measure(ranks, ranks * batch, batch)
            found = {"dpcnn": ours, **theirs}
            speeds = {name: result["images_per_second"] for name, result in found.items()}
            rounds[batch].append({**speeds, "limit": ours["fraction_of_limit"]})
            losses[batch] = {name: result["losses"][COMPARED_STEP] for name, result in found.items()}
            machine = ours["machine"] | {"torch": version("torch")}
    ratios = {batch: summary(rounds[batch], list(settings)) for batch in batches}
    text = (
        f"{jobs.config.model} against {PEERS[peer]} {machine['torch']}; {machine['processor']}; "
        f"NumPy {machine['numpy']}, {machine['blas']}; {ranks} ranks; "
        f"{jobs.rounds} rounds; images/s are medians"
    )
    lines = [text, "", table(rounds, ratios, losses), *remarks(losses)]
    result = {"rounds": rounds, "ratios": ratios, "losses": losses, "machine": machine, "peer": peer, "ranks": ranks}
    return result, "\n".join(lines)


def measure_torch(jobs: Jobs, peer: str, ranks: int, batch: int, settings: Sequence[str]) -> Result:
    """The speed and the losses of PyTorch; ``batch`` is per rank."""
    processes, threads = (1, ranks) if peer == "torch-threads" else (ranks, 1)
    start = ["--standalone", "--nproc-per-node", str(processes), "-m", "dpcnn.evidence.peers.torch_ddp"]
    flags = config_words(jobs.recipe, {**jobs.flags, "batch": ranks * batch, "microbatch": batch})
    words = [*start, *flags, "--threads", str(threads), "--steps", str(jobs.steps), *settings]
    result: Result = load_json(run("torch.distributed.run", *words).strip().splitlines()[-1])
    return result


def summary(rounds: Rounds, settings: Sequence[str]) -> Result:
    """The ratio in each round of dpcnn to the fastest of PyTorch's settings, its median, and the median's interval."""
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
                "torch-threads), these are not the same training",
            ]
    return []
