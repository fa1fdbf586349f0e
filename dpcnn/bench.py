"""Measure speed: python -m dpcnn.bench, also under mpirun"""

import importlib.util
import json
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from dpcnn.base.files import write_file
from dpcnn.base.text import markdown
from dpcnn.base.timing import STEP_PHASES
from dpcnn.cli import DONE, Parser, add_config_flags, given, override, parse, retype, run
from dpcnn.config import Config, read_recipe
from dpcnn.data.dataset import find_data, load
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.evidence.measure import Result, compare_exchanges, measure
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.launch import check_starter, usual_launcher
from dpcnn.parallel.shared import share_or_part
from dpcnn.reporting.figures import draw_scaling
from dpcnn.training.resume import RECIPE

LAYOUTS = ("nchw", "channels-last")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    starts_jobs = any(word.startswith(("--scaling", "--versus")) for word in words)
    return run(lambda comm: bench(comm, words), comm=Alone() if starts_jobs else None)


def _parser() -> Parser:
    parser = Parser(prog="dpcnn.bench", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="steps of each measurement (default 50)")
    parser.add_argument("--exchange-only", action="store_true", help="compare the exchanges, and nothing else")
    parser.add_argument("--scaling", metavar="RANKS", help="start runs on these numbers of ranks, such as 1,2,4")
    parser.add_argument("--versus", choices=("torch",), help="start runs in turns with PyTorch DDP")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of --versus (default 2)")
    parser.add_argument("--batches", default="32,64,128", help="batches a rank of --versus (default 32,64,128)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of --scaling and --versus (default 7)")
    parser.add_argument("--launcher", default=usual_launcher(), help="starts the ranks, as for dpcnn.verify")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--recipe", metavar="NAME|FILE", help="options to start from (default simple-cnn)")
    add_config_flags(parser)
    return parser


def bench(comm: Alone, words: Sequence[str]) -> int:
    """Measure what the command line asks for, on every rank of ``comm``."""
    with comm.together():
        options = parse(_parser(), words, comm)
        config = override(read_recipe(options.recipe or RECIPE), options)
        check(options)
    if options.scaling:
        result, text = scaling(options, config)
    elif options.versus:
        result, text = versus(options, config)
    else:
        result, text = measure_here(comm, options, config)
    with comm.together():
        if comm.rank == 0:
            print(text)
            if options.json:
                write_file(options.json, json.dumps(result, indent=1).encode() + b"\n")
    return DONE


def check(options: Namespace) -> None:
    """Refuse what can't be measured."""
    for name, least in (("steps", 1), ("ranks", 1), ("rounds", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: must be at least {least}, not {getattr(options, name)}")
    for name in ("scaling", "batches"):
        if not all(word.isdecimal() and int(word) for word in (getattr(options, name) or "1").split(",")):
            raise ConfigError(f"--{name}: expected numbers such as 1,2,4, not {getattr(options, name)}")
    if not (options.scaling or options.versus):
        return
    check_starter("--scaling" if options.scaling else "--versus", options.launcher)
    if options.versus and importlib.util.find_spec("torch") is None:
        raise LaunchError("--versus torch: PyTorch is not installed; get it: pip install 'dpcnn[torch]'")


def measure_here(comm: Alone, options: Namespace, config: Config) -> tuple[Result, str]:
    """The speed of this job's own ranks."""
    apart = share_or_part(comm)
    if apart and comm.rank == 0:
        print(apart, file=sys.stderr)
    with comm.together():
        folder = find_data(config.data)
    samples = load(folder, "train", comm)
    with comm.together():
        network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    nodes = comm.allgather_obj(comm.node().rank).count(0)
    result: Result = {"ranks": comm.size, "nodes": nodes, "parameters": network.size}
    if not options.exchange_only:
        result |= measure(comm, config, network, samples, options.steps)
    result["exchange"] = compare_exchanges(comm, network.size, min(10, options.steps))
    text = [exchange_line(comm.size, result["exchange"])]
    return result, "\n".join(text if options.exchange_only else [*step_lines(result), *text])


def step_lines(result: Result) -> list[str]:
    """What there is to say of one measured job."""
    machine, config, milliseconds = result["machine"], result["config"], 1e3 * result["seconds_a_step"]
    lines = [
        f"{machine['processor']}; {machine['mpi']}; NumPy {machine['numpy']}, {machine['blas']}",
        f"{config['model']}, {result['ranks']} ranks, batch {config['batch']} in microbatches of "
        f"{config['microbatch']}: {result['images_per_second']:,.0f} images/s, {milliseconds:.1f} ms a step",
        f"sgemm peak of all ranks {result['sgemm_peak'] / 1e9:.0f} GFLOP/s; {result['flops_an_image'] / 1e6:.1f} MFLOP "
        f"an image by direct convolution; {result['fraction_of_limit']:.0%} of that limit",
        "",
        markdown(
            ("rank", *STEP_PHASES, "peak memory", "its own"),
            [
                (
                    rank,
                    *(f"{shares[phase]:.1%}" for phase in STEP_PHASES),
                    f"{used['peak']:.0f} MB",
                    f"{used['own']:.0f} MB",
                )
                for rank, (shares, used) in enumerate(zip(result["shares"], result["memory"], strict=True))
            ],
        ),
        "",
    ]
    return lines


def exchange_line(ranks: int, found: Result) -> str:
    """The comparison of exchanges in words."""
    exact, allreduce = (median(found["milliseconds"][key]) for key in ("exact", "allreduce"))
    return (
        f"{ranks} ranks: exact exchange and Adam on slices {exact:.2f} ms, MPI_Allreduce and Adam on every rank "
        f"{allreduce:.2f} ms; ratio {found['ratio']:.2f} ({min(found['ratios']):.2f} to {max(found['ratios']):.2f})"
    )


def scaling(options: Namespace, config: Config) -> tuple[Result, str]:
    """The same batch on more ranks (strong scaling), and the same batch a rank (weak), in turns."""
    counts = [int(word) for word in options.scaling.split(",")]
    kinds = {"strong": dict.fromkeys(counts, config.batch), "weak": {count: count * config.batch for count in counts}}
    speeds: dict[str, dict[int, list[float]]] = {kind: {count: [] for count in counts} for kind in kinds}
    last: dict[int, Result] = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for kind, batches in kinds.items():
            for count, batch in batches.items():
                last[count] = job(options, count, batch, min(batch // count, config.batch) if kind == "weak" else 0)
                speeds[kind][count].append(last[count]["images_per_second"])
    rows = []
    for kind in kinds:
        base = median(speeds[kind][counts[0]])
        for count in counts:
            middle = median(speeds[kind][count])
            rows.append(
                (kind, count, kinds[kind][count], f"{middle:,.0f}", spread(speeds[kind][count]), f"{middle / base:.2f}")
            )
    text = markdown(("scaling", "ranks", "batch", "images/s", "of all rounds", f"times {counts[0]} ranks"), rows)
    drawn = draw_scaling(
        {kind: {n: median(all_) for n, all_ in found.items()} for kind, found in speeds.items()}, Path("scaling")
    )
    return {"speeds": speeds, "machine": last[counts[0]]["machine"]}, f"{text}\n\n{drawn}"


def versus(options: Namespace, config: Config) -> tuple[Result, str]:
    """The same network, data and batch by PyTorch DDP, each round after ours, in both of its layouts."""
    batches = [int(word) for word in options.batches.split(",")]
    rounds: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    last: Result = {}
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for batch in batches:
            last = job(options, options.ranks, options.ranks * batch, batch)
            found = {"dpcnn": last["images_per_second"], "limit": last["fraction_of_limit"]}
            for layout in LAYOUTS:
                found[layout] = peer(options, config, batch, layout)
            rounds[batch].append(found)
    rows = []
    for batch in batches:
        columns = {key: [found[key] for found in rounds[batch]] for key in ("dpcnn", *LAYOUTS, "limit")}
        ratios = [found["dpcnn"] / max(found[layout] for layout in LAYOUTS) for found in rounds[batch]]
        speeds = [f"{median(columns[key]):,.0f}" for key in ("dpcnn", *LAYOUTS)]
        rows.append(
            (
                batch,
                *speeds,
                f"{median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{median(columns['limit']):.0%}",
            )
        )
    header = (
        "batch a rank",
        "dpcnn",
        "DDP, NCHW",
        "DDP, channels-last",
        "ratio",
        "of all rounds",
        "of the sgemm limit",
    )
    machine = last["machine"]
    text = f"{machine['processor']}; {options.ranks} ranks; {options.rounds} rounds; images/s are medians"
    return {"rounds": rounds, "machine": machine}, f"{text}\n\n{markdown(header, rows)}"


def job(options: Namespace, ranks: int, batch: int, microbatch: int) -> Result:
    """One measurement by a job of its own; microbatch 0: as configured."""
    flags = given(options) | {"batch": batch} | ({"microbatch": microbatch} if microbatch else {})
    recipe = ["--recipe", options.recipe] if options.recipe else []
    with TemporaryDirectory(prefix="dpcnn-bench-") as work:
        path = Path(work) / "result.json"
        own = ["--steps", str(options.steps), "--json", str(path)]
        start([*shlex.split(options.launcher), "-n", str(ranks)], "dpcnn.bench", *recipe, *retype(flags), *own)
        found: Result = json.loads(path.read_text(encoding="utf-8"))
    return found


def peer(options: Namespace, config: Config, batch: int, layout: str) -> float:
    """Images a second of PyTorch DDP."""
    words = ["--ranks", options.ranks, "--batch", batch, "--steps", options.steps, "--layout", layout]
    words += ["--model", config.model, "--data", config.data, "--smoothing", config.label_smoothing]
    return float(start([], "dpcnn.evidence.peers.torch_ddp", *map(str, words)).strip().splitlines()[-1])


def start(launcher: Sequence[str], module: str, *words: str) -> str:
    """Run a module of this package to its end, and return what it printed.

    Raises:
        LaunchError: it failed.
    """
    done = subprocess.run([*launcher, sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        told = [line for line in said if line.startswith("dpcnn: ")] or said[-1:]
        raise LaunchError(f"{module} ended with status {done.returncode}; it said: {told[0]}")
    return done.stdout


def spread(values: Sequence[float]) -> str:
    """The least and the greatest."""
    return f"{min(values):,.0f} to {max(values):,.0f}"


if __name__ == "__main__":
    sys.exit(main())
