"""The time of each layer alone, its limit on this machine, and PyTorch's time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from statistics import median
from typing import Any

import numpy as np

from dpcnn.base.arrays import UFUNC_BUFFER, empty, ufunc_buffer
from dpcnn.base.fields import load_json
from dpcnn.base.numerics import check, fingerprint, processor
from dpcnn.base.rng import SampleRng
from dpcnn.base.text import markdown
from dpcnn.data.dataset import find_data
from dpcnn.data.shards import read_manifest
from dpcnn.evidence.comparison import Jobs
from dpcnn.evidence.jobs import config_words, run
from dpcnn.evidence.measure import Result, sgemm_peak
from dpcnn.nn.graph import IMAGES
from dpcnn.nn.layer import Layer
from dpcnn.nn.merging import Merge
from dpcnn.nn.network import Network
from dpcnn.parallel.comm import SerialComm
from dpcnn.training.fitted import fitted

COPIED = 1 << 24
"""Elements of each array of the measurement of bandwidth, 64 MB: more than the caches of a core."""

REPEATS = 7

Times = tuple[float, float]
"""Seconds of a layer, forward and backward."""


@dataclass(frozen=True)
class Work:
    """What a layer has to do for a microbatch, forward and backward.

    Attributes:
        flops: floating-point operations of its products, by their definition.
        bytes: of its inputs, outputs, weights and their gradients, each read or written once.
    """

    flops: tuple[int, int]
    bytes: tuple[int, int]

    def limit(self, peak: float, bandwidth: float) -> float:
        """The least seconds by the roofline: Williams, Waterman and Patterson, "Roofline" (2009).

        Args:
            peak: floating-point operations per second.
            bandwidth: bytes per second.
        """
        return sum(max(f / peak, b / bandwidth) for f, b in zip(self.flops, self.bytes, strict=True))


def work_of(network: Network, number: int, images: int) -> Work:
    """The work of a layer for a microbatch."""
    layer = network.layers[number]
    inputs = images * sum(map(prod, network.input_shapes(number)))
    outputs, weights = images * prod(network.shapes[number]), sum(prod(p.shape) for p in layer.parameters)
    flops, dx = 2 * images * layer.multiplications, layer.needs_input_grad
    backward = outputs + inputs * (1 + dx) + 2 * weights  # dy, x and dx, w and dw
    learns = network.learning[number]  # else there is no backward computation
    return Work((flops, learns * flops * (1 + dx)), (4 * (inputs + outputs + weights), learns * 4 * backward))


def bandwidth() -> float:
    """Bytes per second of one core between its memory and an addition of arrays: the fastest of some."""
    a, b, out = np.ones((3, COPIED), np.float32)  # written: all zeros would share one page
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        np.add(a, b, out=out)
        seconds.append(time.perf_counter() - started)
    return 3 * a.nbytes / min(seconds)


def time_layers(network: Network, params: Any, images: int) -> list[Times]:
    """The median time of each layer alone; its inputs and its gradient are random, and have just been written."""
    views = network.views(params)
    times = []
    with ufunc_buffer(UFUNC_BUFFER):
        for number, (name, layer) in enumerate(zip(network.names, network.layers, strict=True)):
            own = {p.name: views[f"{name}.{p.name}"] for p in layer.parameters}
            xs = inputs(network, number, images)
            dy = random(network.shapes[number], images)
            learns = network.learning[number]
            found = [time_layer(layer, xs, own, dy, images, learns) for _ in range(REPEATS + 1)]
            times.append(medians(found[1:]))  # the first one warms up
    return times


def inputs(network: Network, number: int, images: int) -> list[Any]:
    """Random inputs of a layer, in the order in memory in which the network passes them."""
    found = []
    for source, shape in zip(network.sources[number], network.input_shapes(number), strict=True):
        x, first = random(shape, images), network.layers[0]
        if len(shape) == 3 and ((source == 0 and first.by_image) or (source == IMAGES and first.takes_integers)):
            x = np.ascontiguousarray(x.transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)  # lies in memory as (N, H, W, C)
        found.append(x)
    return found


def random(shape: Sequence[int], images: int) -> Any:
    """Normal numbers in the layout of :mod:`dpcnn.nn.layer`, float32."""
    return np.random.default_rng(0).standard_normal((*shape[:-1], images, shape[-1]), np.float32)


def time_layer(layer: Layer, xs: Sequence[Any], own: Mapping[str, Any], dy: Any, images: int, learns: bool) -> Times:
    """The seconds of a layer's computation on copies of the arrays; it has no backward one unless it ``learns``."""
    xs, dy = [copied(x) for x in xs], copied(dy)
    rng = None if layer.frozen else SampleRng(0, 0, np.arange(images))  # a frozen layer computes as in evaluation
    grads = {name: np.empty_like(array) for name, array in own.items()}
    backward: Any
    started = time.perf_counter()
    _, backward = layer.merge(xs) if isinstance(layer, Merge) else layer.forward(xs[0], own, rng)
    between = time.perf_counter()
    if learns:
        backward(*([dy] if isinstance(layer, Merge) else [dy, grads]))
    return between - started, time.perf_counter() - between


def copied(array: Any) -> Any:
    """A copy in memory like that of a network's arrays, in the same order."""
    order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    copy = empty(tuple(array.shape[axis] for axis in order), array.dtype).transpose(np.argsort(order))
    copy[...] = array
    return copy


def measure_layers(jobs: Jobs) -> tuple[Result, str]:
    """Measure each layer of a network, in turns with PyTorch where it is installed, in one thread each.

    Returns:
        All measurements, and their table.
    """
    config = jobs.config
    check(config.numerics)
    config, network = fitted(config, read_manifest(find_data(config.data)))
    network.check_memory(config.microbatch)
    params = network.initialise(config.seed, config.init, config.init_std)
    ours: list[list[Times]] = []
    theirs: list[list[Times | None]] = []
    peaks, speeds = [], []
    for _ in jobs.turns():
        peaks.append(sgemm_peak(SerialComm()))
        speeds.append(bandwidth())
        ours.append(time_layers(network, params, config.microbatch))
        theirs += [time_in_torch(jobs)] if find_spec("torch") else []
    result = {
        "layers": list(rows(network, config.microbatch, ours, theirs, max(peaks), max(speeds))),
        "sgemm_peak": max(peaks),
        "bandwidth": max(speeds),
        "microbatch": config.microbatch,
        "machine": {"processor": processor(), **fingerprint()},
    }
    return result, layers_text(config.model, result)


def time_in_torch(jobs: Jobs) -> list[Times | None]:
    """PyTorch's time of each layer in its faster layout; None where PyTorch has no such layer."""
    words = config_words(jobs.recipe, jobs.flags)
    by_layout = load_json(run("dpcnn.evidence.peers.torch_layers", *words))
    return [
        min((tuple(each) for each in times if each), key=sum, default=None) for times in zip(*by_layout, strict=True)
    ]


def rows(
    network: Network,
    images: int,
    ours: Sequence[Sequence[Times]],
    theirs: Sequence[Sequence[Times | None]],
    peak: float,
    memory: float,
) -> Iterator[Result]:
    """The medians over the rounds for each layer. ``theirs`` is empty without PyTorch."""
    for number, name in enumerate(network.names):
        work, own = work_of(network, number, images), medians([times[number] for times in ours])
        row = {"name": name, "output": list(network.shapes[number]), "forward": own[0], "backward": own[1]}
        row |= {"flops": sum(work.flops), "bytes": sum(work.bytes), "limit": work.limit(peak, memory)}
        if theirs and theirs[0][number]:
            found = [times[number] or (0.0, 0.0) for times in theirs]
            row |= dict(zip(("torch_forward", "torch_backward"), medians(found), strict=True))
            row["ratios"] = [sum(other) / sum(times[number]) for times, other in zip(ours, found, strict=True)]
        yield row


def medians(times: Sequence[Times]) -> Times:
    """The medians of the forward and of the backward times."""
    return median(forward for forward, _ in times), median(backward for _, backward in times)


def layers_text(model: str, result: Result) -> str:
    """The measurements of the layers in words and a table."""
    machine, peak, memory = result["machine"], result["sgemm_peak"] / 1e9, result["bandwidth"] / 1e9
    title = (
        f"{model}, microbatch {result['microbatch']}, one thread; {machine['processor']}; NumPy {machine['numpy']}, "
        f"{machine['blas']}\nsgemm peak {peak:.0f} GFLOP/s, memory {memory:.1f} GB/s; times in milliseconds"
    )
    ours = ("layer", "output", "forward", "backward", "GFLOP/s", "roofline", "of the roofline")
    lines = [layer_row(row) for row in [*result["layers"], total(result["layers"])]]
    return f"{title}\n\n{markdown((*ours, 'PyTorch forward', 'PyTorch backward', 'ratio'), lines)}"


def total(layers: Sequence[Result]) -> Result:
    """The sums over all layers; without PyTorch's if a layer lacks them."""
    keys = ["forward", "backward", "flops", "bytes", "limit"]
    compared = all("ratios" in row for row in layers)
    keys += ["torch_forward", "torch_backward"] if compared else []
    sums: Result = {key: sum(row[key] for row in layers) for key in keys}
    if compared:
        sums["ratios"] = [(sums["torch_forward"] + sums["torch_backward"]) / (sums["forward"] + sums["backward"])]
    return {"name": "all", "output": [], **sums}


def layer_row(row: Result) -> tuple[str, ...]:
    """The cells of a layer; those of PyTorch are empty if there is no time."""
    seconds = row["forward"] + row["backward"]
    speed = f"{row['flops'] / seconds / 1e9:.0f}" if row["flops"] else ""
    limit = f"{1e3 * row['limit']:.3f}", f"{row['limit'] / seconds:.0%}"
    times = [f"{1e3 * row[key]:.3f}" for key in ("forward", "backward")]
    theirs = [f"{1e3 * row[f'torch_{key}']:.3f}" if "ratios" in row else "" for key in ("forward", "backward")]
    ratio = f"{median(row['ratios']):.2f}" if "ratios" in row else ""
    return row["name"], "x".join(map(str, row["output"])), *times, speed, *limit, *theirs, ratio
