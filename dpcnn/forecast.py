"""Predict the time of a step from measured ones: python -m dpcnn.forecast --fit FILE... --check FILE..."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, log2
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpcnn.base.fields import Table, load_json, number
from dpcnn.base.files import MOST_TEXT, read_bytes
from dpcnn.base.text import markdown
from dpcnn.cli import DONE, Parser, parse, run
from dpcnn.errors import ConfigError
from dpcnn.parallel.comm import Alone
from dpcnn.reporting.figures import draw_scaling

Fit = dict[str, float]
LEAST_TIME = 1e-9
"""Seconds or milliseconds: less was never measured."""


@dataclass(frozen=True)
class Job:
    """What the time of a step depends on.

    Attributes:
        ranks, nodes: how many, the ranks spread evenly over the nodes.
        images: of a rank, in a step; 0 where only the exchange and the optimizer were measured.
        microbatches: of a rank, in a step.
        size: parameters.
        flops: floating-point operations of an image's gradient, by definition.
        activations: elements of all layers' outputs for an image.
        seconds: a step's, as measured; None where it is asked for.
    """

    ranks: int
    nodes: int
    images: float
    microbatches: float
    size: int
    flops: float
    activations: float
    seconds: float | None = None


TERMS: dict[str, tuple[str, Callable[[Job], float]]] = {
    "gamma, arithmetic": ("s a FLOP", lambda job: job.flops * job.images),
    "gamma, memory": ("s an activation", lambda job: job.activations * job.images),
    "gamma, weights": ("s a parameter and microbatch", lambda job: job.size * job.microbatches),
    "gamma, microbatch": ("s a microbatch", lambda job: job.microbatches),
    "gamma, sum": ("s a parameter", lambda job: job.size * (job.ranks > job.nodes)),
    "gamma, update": ("s a parameter of a rank's part", lambda job: job.size / job.ranks),
    "alpha, node": ("s a meeting", lambda job: 3 * log2(job.ranks / job.nodes)),
    "alpha, network": ("s a message", lambda job: 2 * (job.nodes - 1) + log2(job.nodes)),
    "beta, network": ("s a byte", lambda job: 2 * 4 * job.size * (job.nodes - 1) / job.nodes),
}
"""The model: a step takes the sum of these counts, each times a constant of the machine.

Arithmetic and memory (gamma): an image costs what its layers multiply, and what they read and write; a
microbatch reads the weights and writes a gradient, whatever its images; a node's ranks add up a slice of all
their rows; each rank updates its part. Latency (alpha): the ranks of a node meet three times a step; a rank
exchanges sums, then parameters, with one rank of every other node, and all hear of each other's losses.
Bandwidth (beta): a node sends, and is sent, its sums and its parts of the parameters, but for what it keeps.
After Hockney, "The communication challenge for MPP" (1994), and Thakur, Rabenseifner and Gropp, "Optimization
of collective communication operations in MPICH" (2005), section 3.
"""

OF_AN_IMAGE = [name for name in TERMS if name.startswith("gamma")][:4]
"""Terms of which one can stand for others: where all jobs train one network, images cost what FLOPs cost, and where
its microbatches are of one size, those too. A forecast of the same network needs no more."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: forecast(comm, argv), comm=Alone())


def forecast(comm: Alone, argv: Sequence[str] | None) -> int:
    """Fit, check, and look ahead."""
    parser = Parser(prog="dpcnn.forecast", description=__doc__)
    parser.add_argument("--fit", nargs="+", type=Path, required=True, metavar="FILE", help="of dpcnn.bench --json")
    parser.add_argument("--check", nargs="*", type=Path, default=[], metavar="FILE", help="others, to be predicted")
    parser.add_argument("--ranks-a-node", type=int, default=2)
    parser.add_argument("--nodes", default="1,2,4,8,16,32,64,128,256,512,1024,2048")
    parser.add_argument("--latency", type=float, help="seconds of a message between nodes, in place of the fitted")
    parser.add_argument("--plot", type=Path, metavar="STEM", help="draw images a second to STEM.png and STEM.svg")
    options = parse(parser, argv, comm)
    if not all(word.isdecimal() and int(word) for word in [*options.nodes.split(","), str(options.ranks_a_node)]):
        raise ConfigError("--nodes and --ranks-a-node: expected numbers such as 1,2,4")
    measured = [read_job(path) for path in options.fit]
    fit = fitted(measured)
    print(markdown(("constant", "value", "unit"), [(name, f"{fit[name]:.3g}", TERMS[name][0]) for name in fit]), "\n")
    if missing := [name for name in TERMS if name not in fit]:
        print(f"0, or in what another one of these stands for: {'; '.join(missing)}\n")
    jobs = [(path, read_job(path)) for path in options.check]
    if jobs:
        print(check(fit, jobs), "\n")
    if options.latency is not None:
        fit["alpha, network"] = options.latency
    trained = [job for job in measured if job.images]
    if trained:
        base = max(trained, key=lambda job: (job.size, job.images))
        text, speeds = look_ahead(fit, base, options.ranks_a_node, [int(word) for word in options.nodes.split(",")])
        print(text)
        if options.plot:
            print(draw_scaling(speeds, options.plot, log=True))
    return DONE


def read_job(path: Path) -> Job:
    """The job that a file of ``dpcnn.bench --json`` tells of.

    Raises:
        ConfigError: it is no such file, or holds no measurement of one job.
    """
    try:
        found = Table(load_json(read_bytes(path, MOST_TEXT)))
        ranks, nodes, size = (found.integer(key, 1) for key in ("ranks", "nodes", "parameters"))
        if "seconds_a_step" not in found:
            times = found.table("exchange").table("milliseconds").items("exact")
            seconds = median(number(time, "exchange.milliseconds.exact", LEAST_TIME) for time in times) / 1e3
            return Job(ranks, nodes, 0, 0, size, 0, 0, seconds)
        batch, microbatch = (found.table("config").integer(key, 1) for key in ("batch", "microbatch"))
        flops, activations = (found.number(key, 0) for key in ("flops_an_image", "activations_an_image"))
        seconds = found.number("seconds_a_step", LEAST_TIME)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file of python -m dpcnn.bench --json") from None
    except ValueError as error:
        raise ConfigError(f"{path}: expected a file of python -m dpcnn.bench --json, of one job ({error})") from None
    return Job(ranks, nodes, batch / ranks, ceil(batch / microbatch) / ranks, size, flops, activations, seconds)


def fitted(jobs: Sequence[Job]) -> Fit:
    """The constants, none below zero, with the least squares of relative errors.

    Raises:
        ConfigError: there are too few jobs for the terms that they have.
    """
    names = [name for name, (_, count) in TERMS.items() if any(count(job) for job in jobs)]
    for first, other in combinations([name for name in OF_AN_IMAGE if name in names], 2):
        if first in names and other in names and proportional(TERMS[first][1], TERMS[other][1], jobs):
            names.remove(other)
    while names:
        table = np.array([[TERMS[name][1](job) / (job.seconds or 1) for name in names] for job in jobs])
        scale = table.max(axis=0)
        if np.linalg.matrix_rank(table / scale) < len(names):
            raise ConfigError(
                f"--fit: {len(jobs)} files do not tell these costs apart: {'; '.join(names)}; give more, of other kinds"
            )
        values = np.linalg.lstsq(table / scale, np.ones(len(jobs)), rcond=None)[0] / scale
        if values.min() >= 0:
            return dict(zip(names, values.tolist(), strict=True))
        del names[int((values * scale).argmin())]
    raise ConfigError("--fit: these files hold nothing to fit")


def proportional(count: Callable[[Job], float], other: Callable[[Job], float], jobs: Sequence[Job]) -> bool:
    """Whether one count is the other one times the same factor in all jobs."""
    factors = [other(job) / count(job) for job in jobs if count(job)]
    return max(factors) <= min(factors) * (1 + 1e-9)


def predicted(fit: Fit, job: Job) -> dict[str, float]:
    """Seconds of a step, by term."""
    return {name: value * TERMS[name][1](job) for name, value in fit.items()}


def check(fit: Fit, jobs: Sequence[tuple[Path, Job]]) -> str:
    """A table of predicted and measured times."""
    rows: list[tuple[Any, ...]] = []
    errors = []
    for path, job in jobs:
        assert job.seconds, "it was measured"
        guess = sum(predicted(fit, job).values())
        errors.append(abs(guess / job.seconds - 1))
        rows.append(
            (
                path.stem,
                job.ranks,
                job.nodes,
                f"{1e3 * job.seconds:.1f}",
                f"{1e3 * guess:.1f}",
                f"{guess / job.seconds - 1:+.0%}",
            )
        )
    table = markdown(("not fitted", "ranks", "nodes", "measured, ms", "predicted, ms", "error"), rows)
    return f"{table}\n\nmedian error of these {median(errors):.0%}, largest {max(errors):.0%}"


def look_ahead(fit: Fit, base: Job, ranks_a_node: int, nodes: Sequence[int]) -> tuple[str, dict[str, dict[int, float]]]:
    """A table of steps on more nodes, each rank with the images of ``base``, and the batch of all of them fixed."""
    rows: list[tuple[Any, ...]] = []
    speeds: dict[str, dict[int, float]] = {"same batch a rank": {}, "same batch": {}}
    batch = base.images * ranks_a_node * nodes[-1]
    for count in nodes:
        ranks = count * ranks_a_node
        weak = replace(base, ranks=ranks, nodes=count)
        times = predicted(fit, weak)
        step = sum(times.values())
        network = sum(seconds for name, seconds in times.items() if name.endswith("network"))
        images = batch / ranks
        strong = replace(weak, images=images, microbatches=images * base.microbatches / base.images)
        speeds["same batch a rank"][ranks] = ranks * base.images / step
        speeds["same batch"][ranks] = batch / sum(predicted(fit, strong).values())
        rows.append((ranks, count, f"{1e3 * step:.1f}", f"{network / step:.0%}", f"{ranks * base.images / step:,.0f}"))
    table = markdown(("ranks", "nodes", "a step, ms", "network", "images/s"), rows)
    return f"{base.images:.0f} images a rank, {base.size:,} parameters:\n\n{table}", speeds


if __name__ == "__main__":
    sys.exit(main())
