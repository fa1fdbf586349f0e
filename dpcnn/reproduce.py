"""Run recipes anew and hold them against what was published: python -m dpcnn.reproduce [RECIPE...]"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from dpcnn.base.fields import load_json
from dpcnn.base.files import read_bytes, write_file
from dpcnn.base.numerics import fingerprint, processor
from dpcnn.base.text import markdown
from dpcnn.bench import start
from dpcnn.cli import DONE, Parser, parse, retype, run
from dpcnn.config import read_recipe
from dpcnn.errors import ConfigError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.launch import check_starter, usual_launcher
from dpcnn.runs.events import Event, evaluated, read_events


@dataclass(frozen=True)
class Published:
    """A figure that somebody printed: the accuracy on ``kind`` samples after an epoch."""

    kind: str
    epoch: int
    accuracy: float
    note: str = ""


PUBLISHED = {
    "simple-cnn-32": [Published("validation", 8, 0.9956)],
    "book-cnn-adam": [Published("test", 20, 0.99, "about")],
    "book-cnn-adagrad": [
        Published("test", 1, 0.9780),
        Published("test", 10, 0.9860),
    ],
    "mlp-sgd": [Published("test", 84, 0.9721)],
    "mlp-adam": [Published("test", 10, 0.9708)],
    "lenet5": [Published("test", 20, 0.9905, "LeCun et al., 1998, section III.B")],
    "fast": [Published("test", 2, 0.99, "a goal of our own")],
    "accurate": [Published("test", 20, 0.9970, "a goal of our own")],
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: reproduce(comm, argv), comm=Alone())


def reproduce(comm: Alone, argv: Sequence[str] | None) -> int:
    """Run every recipe with every seed, where asked for in PyTorch too, and write the table."""
    parser = Parser(prog="dpcnn.reproduce", description=__doc__)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(PUBLISHED)} (default all)")
    parser.add_argument("--seeds", default="0,1,2", help="a run with each (default 0,1,2)")
    parser.add_argument("--ranks", type=int, default=2, help="of each run (default 2)")
    parser.add_argument("--launcher", default=usual_launcher(), help="starts the ranks, as for dpcnn.verify")
    parser.add_argument("--data", help="data set, in place of the recipes' own")
    parser.add_argument("--max-steps", type=int, help="end each run after so many steps: for a trial")
    parser.add_argument("--torch", default="", metavar="RECIPE,..", help="train these in PyTorch as well")
    parser.add_argument(
        "--runs", type=Path, metavar="DIR", help="keep the runs there; what is there already is not run again"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table to this Markdown file")
    options = parse(parser, argv, comm)
    names = options.recipes or list(PUBLISHED)
    in_torch = [name for name in options.torch.split(",") if name]
    for name in [*names, *in_torch]:
        if name not in PUBLISHED:
            raise ConfigError(f"no published figure for {name!r}; choose from {', '.join(PUBLISHED)}")
    if not all(word.isdecimal() for word in options.seeds.split(",")):
        raise ConfigError(f"--seeds: expected numbers such as 0,1,2, not {options.seeds}")
    check_starter("dpcnn.reproduce", options.launcher)
    more = retype({key: value for key in ("data", "max_steps") if (value := getattr(options, key)) is not None})
    launcher = [*shlex.split(options.launcher), "-n", str(options.ranks)]
    rows = []
    with TemporaryDirectory(prefix="dpcnn-reproduce-") as work:
        place = options.runs or Path(work)
        for name in names:
            ours, theirs = [], []
            for seed in options.seeds.split(","):
                ours.append(train(launcher, name, seed, more, place / f"{name}-{seed}"))
                if name in in_torch:
                    theirs.append(train_in_torch(name, seed, more, place / f"{name}-{seed}-torch.jsonl"))
                last = {kind: f"{ours[-1][-1][f'{kind}_accuracy']:.4f}" for kind in evaluated(ours[-1][-1])}
                print(f"{name}, seed {seed}: {last}", file=sys.stderr, flush=True)
            rows += [compare(name, published, ours, theirs) for published in PUBLISHED[name]]
    text = table(rows, options.ranks)
    print(text)
    if options.out:
        write_file(options.out, f"# Results\n\n{text}\n".encode())
    return DONE


def train(launcher: Sequence[str], recipe: str, seed: str, more: Sequence[str], folder: Path) -> list[Event]:
    """A run's events of epochs; a run that is there is gone on with, one that is at its end is left alone."""
    metrics = folder / "metrics.jsonl"
    if not (metrics.is_file() and read_events(metrics)[-1:] and read_events(metrics)[-1]["event"] == "end"):
        begin = ["--resume"] if folder.exists() else ["--recipe", recipe, "--seed", seed, *more]
        start(launcher, "dpcnn.train", *begin, "--test", "--out", str(folder))
    return [event for event in read_events(metrics) if event["event"] == "epoch"]


def train_in_torch(recipe: str, seed: str, more: Sequence[str], told: Path) -> list[Event]:
    """What PyTorch's run tells of its epochs, which is kept in a file."""
    if not told.is_file():
        told.parent.mkdir(parents=True, exist_ok=True)
        write_file(told, start([], "dpcnn.evidence.peers.torch_recipe", recipe, "--seed", seed, *more).encode())
    return [load_json(line) for line in read_bytes(told).splitlines()]


def reached(published: Published, runs: Sequence[Sequence[Event]]) -> list[float]:
    """The accuracy of each run after the epoch of the published figure."""
    epochs = [next((e for e in epochs if e["epoch"] == published.epoch), epochs[-1]) for epochs in runs]
    return [event[f"{published.kind}_accuracy"] for event in epochs]


def compare(
    name: str, published: Published, runs: Sequence[Sequence[Event]], in_torch: Sequence[Sequence[Event]] = ()
) -> tuple[str, ...]:
    """A row of the table: the published figure, and ours of every seed after the same epoch, and PyTorch's if any."""
    found, theirs = reached(published, runs), reached(published, in_torch)
    seconds = [sum(e["seconds"] for e in epochs if e["epoch"] <= published.epoch) for epochs in runs]
    return (
        name,
        read_recipe(name).optimizer,
        f"{published.kind}, epoch {published.epoch}",
        f"{published.accuracy:.4f}" + (f" ({published.note})" if published.note else ""),
        f"{median(found):.4f}",
        " ".join(f"{accuracy:.4f}" for accuracy in found),
        f"{median(seconds):.0f} s",
        f"{median(theirs):.4f}" if theirs else "",
        " ".join(f"{accuracy:.4f}" for accuracy in theirs),
    )


def table(rows: Sequence[Sequence[str]], ranks: int) -> str:
    """The rows under their header, and what machine they come from."""
    numerics = fingerprint()
    ours, theirs = ("ours, median", "of each seed", "training"), ("PyTorch, median", "of each seed")
    header = ("recipe", "optimizer", "accuracy", "published", *ours, *theirs)
    machine = f"{processor()}; {ranks} ranks; NumPy {numerics['numpy']}, {numerics['blas']}"
    return f"{machine}\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    sys.exit(main())
