"""A cost model of a training step: fitted to measured jobs, checked on others, and used for more nodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import ceil, log2
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpcnn.base.fields import Table, load_json, number
from dpcnn.base.files import MOST_JSON, read_bytes
from dpcnn.base.text import markdown
from dpcnn.errors import ConfigError
from dpcnn.nn.layers import WeightProduct
from dpcnn.parallel.products import Cost, Counts, Products, copies_pay, cost

Fit = dict[str, float]
"""The constants of the model, by term."""

LEAST_TIME = 1e-9
"""Seconds or milliseconds: the least measured time that is accepted."""


@dataclass(frozen=True)
class Job:
    """The quantities that determine the time of a step.

    Attributes:
        ranks, nodes: the numbers of both; the ranks are spread evenly over the nodes.
        images: per rank and step; 0 if only the exchange and the optimizer were measured.
        microbatches: per rank and step.
        size: number of parameters.
        flops: floating-point operations of the gradient of one image, by direct convolution.
        activations: number of elements in the outputs of all layers for one image.
        seconds: the measured time of a step; None: not measured.
        products: the gradients of which the nodes send factors, where this saves bytes.
    """

    ranks: int
    nodes: int
    images: float
    microbatches: float
    size: int
    flops: float
    activations: float
    seconds: float | None = None
    products: Products = field(default_factory=dict)

    @property
    def cost(self) -> Cost:
        """What the step costs beside the gradients, by the rules of :mod:`dpcnn.parallel.products`."""
        leaves = max(1, round(self.microbatches * self.ranks))
        counts = Counts([max(1, round(self.images * self.ranks / leaves))] * leaves, self.nodes, self.ranks)
        counts = counts._replace(copied=copies_pay(self.size, self.products, counts))
        return cost(self.size, self.products, counts)


TERMS: dict[str, tuple[str, Callable[[Job], float]]] = {
    "gamma, arithmetic": ("s per FLOP", lambda job: job.flops * job.images + 2 * job.cost.multiplications),
    "gamma, memory": ("s per activation", lambda job: job.activations * job.images),
    "gamma, weights": ("s per parameter and microbatch", lambda job: job.size * job.microbatches),
    "gamma, microbatch": ("s per microbatch", lambda job: job.microbatches),
    "gamma, sum": ("s per parameter", lambda job: job.size * (job.ranks > job.nodes)),
    "gamma, update": ("s per parameter of a rank's shard", lambda job: job.cost.updated),
    "alpha, node": ("s per synchronisation", lambda job: 2 * log2(job.ranks / job.nodes)),
    "alpha, network": ("s per message", lambda job: job.cost.messages * (job.nodes - 1) + log2(job.nodes)),
    "beta, network": ("s per byte", lambda job: 4 * job.cost.received),
}
"""The model: the time of a step is the sum of these counts, each times a constant of the machine.

Arithmetic and memory (gamma): the cost of an image is proportional to the multiplications of its layers, and to the
elements that they read and write; a microbatch of any size reads the weights and writes a gradient; each rank of
a node adds up one slice of all the node's gradient buffers; each rank updates its shard. Latency (alpha): the ranks of
a node synchronise twice per step; a rank exchanges sums, factors and parameters with one rank of every other
node, and all ranks share their losses. Bandwidth (beta): a node sends and receives its sums and its shards of the
parameters, except the shards that it keeps, or fewer bytes by factors and copies, which cost multiplications and
updates (:class:`dpcnn.parallel.products.Cost`).
After Hockney, "The communication challenge for MPP" (1994), and Thakur, Rabenseifner and Gropp, "Optimization
of collective communication operations in MPICH" (2005), section 3.
"""

OF_AN_IMAGE = [name for name in TERMS if name.startswith("gamma")][:4]
"""Terms that the jobs may not separate: if all jobs train one network, images and FLOPs are proportional, and if
all its microbatches have one size, microbatches as well. A forecast for the same network then needs only one."""


def read_job(path: Path) -> Job:
    """Read the job from a file that ``dpcnn.bench --json`` has written.

    Raises:
        ConfigError: the file does not contain the measurement of one job.
    """
    try:
        result = Table(load_json(read_bytes(path, MOST_JSON)))
        ranks, nodes, size = (result.integer(key, 1) for key in ("ranks", "nodes", "parameters"))
        if "seconds_a_step" not in result:
            times = result.table("exchange").table("milliseconds").items("exact")
            seconds = median(number(time, "exchange.milliseconds.exact", LEAST_TIME) for time in times) / 1e3
            return Job(ranks, nodes, 0, 0, size, 0, 0, seconds)
        batch, microbatch = (result.table("config").integer(key, 1) for key in ("batch", "microbatch"))
        flops, activations = (result.number(key, 0) for key in ("flops_an_image", "activations_an_image"))
        seconds = result.number("seconds_a_step", LEAST_TIME)
        sides = [(table.integer("rows", 1), table.integer("columns", 1)) for table in result.tables("products")]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file of dpcnn bench --json") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected a file of dpcnn bench --json, of one job ({error})") from None
    products = {number: WeightProduct(0, rows, columns) for number, (rows, columns) in enumerate(sides)}
    microbatches = ceil(batch / microbatch) / ranks
    return Job(ranks, nodes, batch / ranks, microbatches, size, flops, activations, seconds, products)


def fitted(jobs: Sequence[Job]) -> Fit:
    """The constants that minimise the sum of squared relative errors; none is negative.

    Raises:
        ConfigError: the jobs do not determine the constants of their terms.
    """
    names = distinct_terms(jobs)
    while names:
        table = np.array([[TERMS[name][1](job) / (job.seconds or 1) for name in names] for job in jobs])
        scale = table.max(axis=0)
        if np.linalg.matrix_rank(table / scale) < len(names):
            raise ConfigError(
                f"--fit: {len(jobs)} files do not separate these costs: {'; '.join(names)}; give more, "
                "of other networks, numbers of ranks and nodes, batches and microbatches"
            )
        values = np.linalg.lstsq(table / scale, np.ones(len(jobs)), rcond=None)[0] / scale
        if values.min() >= 0:
            return dict(zip(names, values.tolist(), strict=True))
        del names[int((values * scale).argmin())]
    raise ConfigError("--fit: these files hold nothing to fit")


def distinct_terms(jobs: Sequence[Job]) -> list[str]:
    """The terms that occur in the jobs, but only one of those that are proportional to each other."""
    names = [name for name, (_, count) in TERMS.items() if any(count(job) for job in jobs)]
    for first, other in combinations([name for name in OF_AN_IMAGE if name in names], 2):
        if first in names and other in names and proportional(TERMS[first][1], TERMS[other][1], jobs):
            names.remove(other)
    return names


def proportional(count: Callable[[Job], float], other: Callable[[Job], float], jobs: Sequence[Job]) -> bool:
    """Whether the ratio of two counts is the same in all jobs."""
    factors = [other(job) / count(job) for job in jobs if count(job)]
    return max(factors) <= min(factors) * (1 + 1e-9)


def fit_table(fit: Fit) -> str:
    """The constants with their units, and the terms without a constant of their own."""
    rows = [(name, f"{fit[name]:.3g}", TERMS[name][0]) for name in fit]
    text = markdown(("constant", "value", "unit"), rows)
    if missing := [name for name in TERMS if name not in fit]:
        text += f"\n\n0, or part of another term: {'; '.join(missing)}"
    return text


def predicted(fit: Fit, job: Job) -> dict[str, float]:
    """The predicted seconds of a step, by term."""
    return {name: value * TERMS[name][1](job) for name, value in fit.items()}


def check(fit: Fit, jobs: Sequence[tuple[Path, Job]]) -> str:
    """A table of predicted and measured times."""
    rows, errors = [], []
    for path, job in jobs:
        assert job.seconds, "it was measured"
        guess = sum(predicted(fit, job).values())
        error = guess / job.seconds - 1
        errors.append(abs(error))
        times = (f"{1e3 * seconds:.1f}" for seconds in (job.seconds, guess))
        rows.append((path.stem, job.ranks, job.nodes, *times, f"{error:+.0%}"))
    table = markdown(("not fitted", "ranks", "nodes", "measured, ms", "predicted, ms", "error"), rows)
    return f"{table}\n\nmedian error of these {median(errors):.0%}, largest {max(errors):.0%}"


def look_ahead(
    fit: Fit, base: Job, ranks_per_node: int, nodes: Sequence[int]
) -> tuple[str, dict[str, dict[int, float]]]:
    """Predict steps on other numbers of nodes.

    Returns:
        A table for the batch per rank of ``base``; and images per second by number of ranks, for this batch per rank
        and for one fixed batch, which is that of the last number of nodes.
    """
    rows: list[tuple[Any, ...]] = []
    speeds: dict[str, dict[int, float]] = {"same batch per rank": {}, "same batch": {}}
    batch = base.images * ranks_per_node * nodes[-1]
    for count in nodes:
        ranks = count * ranks_per_node
        weak = replace(base, ranks=ranks, nodes=count)
        images = batch / ranks
        strong = replace(weak, images=images, microbatches=images * base.microbatches / base.images)
        times = predicted(fit, weak)
        step = sum(times.values())
        network = sum(seconds for name, seconds in times.items() if name.endswith("network"))
        speeds["same batch per rank"][ranks] = ranks * base.images / step
        speeds["same batch"][ranks] = batch / sum(predicted(fit, strong).values())
        rows.append((ranks, count, f"{1e3 * step:.1f}", f"{network / step:.0%}", f"{ranks * base.images / step:,.0f}"))
    table = markdown(("ranks", "nodes", "ms per step", "network", "images/s"), rows)
    return f"{base.images:.0f} images per rank, {base.size:,} parameters:\n\n{table}", speeds
