"""Published accuracies of networks, and new runs of their recipes to compare with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from dpcnn.base.fields import load_json
from dpcnn.base.files import read_bytes, write_file
from dpcnn.base.numerics import fingerprint, processor
from dpcnn.base.text import count_of, markdown
from dpcnn.errors import ConfigError
from dpcnn.evidence.jobs import run
from dpcnn.recipe import read_recipe
from dpcnn.runs.events import Event, evaluated, read_events
from dpcnn.runs.folder import RunFolder
from dpcnn.training.resume import Start, choose_config
from dpcnn.training.run import training_parser


@dataclass(frozen=True)
class PublishedResult:
    """A published figure: the accuracy on ``kind`` samples after an epoch."""

    kind: str
    epoch: int
    accuracy: float
    note: str = ""


PUBLISHED = {
    "simple-cnn-32": [PublishedResult("validation", 8, 0.9956)],
    "book-cnn-adam": [PublishedResult("test", 20, 0.99, "about")],
    "book-cnn-adagrad": [
        PublishedResult("test", 1, 0.9780),
        PublishedResult("test", 10, 0.9860),
    ],
    "mlp-sgd": [PublishedResult("test", 84, 0.9721)],
    "mlp-adam": [PublishedResult("test", 10, 0.9708)],
    "lenet5": [PublishedResult("test", 20, 0.9905, "LeCun et al., 1998, section III.B")],
    "fast": [PublishedResult("test", 2, 0.99, "a goal of dpcnn")],
    "accurate": [PublishedResult("test", 20, 0.9970, "a goal of dpcnn")],
}
"""The figures of each recipe."""


def check_recipe(name: str) -> None:
    """Make sure that there is a figure for a recipe.

    Raises:
        ConfigError: there is none.
    """
    if name not in PUBLISHED:
        raise ConfigError(f"no published figure for {name!r}; choose from {', '.join(PUBLISHED)}")


@dataclass(frozen=True)
class Trainings:
    """The options of all trainings.

    Attributes:
        launcher: the command that starts the ranks.
        ranks: of each run.
        folder: of all runs; a run that is complete in it is not repeated.
        more: further arguments of each training.
        say: shows the progress.
    """

    launcher: str
    ranks: int
    folder: Path
    more: Sequence[str]
    say: Callable[[str], None]

    def rows(self, recipe: str, seeds: Sequence[str], in_torch: bool) -> list[tuple[str, ...]]:
        """Train a recipe with each seed, on request also in PyTorch: a row of the table for each published figure."""
        ours, in_pytorch = [], []
        for seed in seeds:
            ours.append(self.train(recipe, seed))
            if in_torch:
                in_pytorch.append(self.train_in_torch(recipe, seed))
            last = ours[-1][-1]
            accuracies = {kind: f"{last[f'{kind}_accuracy']:.4f}" for kind in evaluated(last)}
            self.say(f"{recipe}, seed {seed}: {accuracies}")
        return [compare(recipe, published, ours, in_pytorch) for published in PUBLISHED[recipe]]

    def train(self, recipe: str, seed: str) -> list[Event]:
        """The events of a run's epochs; an incomplete run is resumed, and other options than the run's are an error."""
        folder = self.folder / f"{recipe}-{seed}"
        words = ["--recipe", recipe, "--seed", seed, *self.more, "--test", "--resume", "auto", "--out", str(folder)]
        if not complete(RunFolder(folder), words):
            run("dpcnn.train", *words, launcher=self.launcher, ranks=self.ranks)
        return [event for event in read_events(folder / "metrics.jsonl") if event["event"] == "epoch"]

    def train_in_torch(self, recipe: str, seed: str) -> list[Event]:
        """The events of the epochs of PyTorch's run, which a file keeps."""
        path = self.folder / f"{recipe}-{seed}-torch.jsonl"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            printed = run("dpcnn.evidence.peers.torch_recipe", recipe, "--seed", seed, *self.more)
            write_file(path, printed.encode())
        return [load_json(line) for line in read_bytes(path).splitlines()]


def complete(folder: RunFolder, words: Sequence[str]) -> bool:
    """Whether a run has ended with the options of these arguments of a training.

    Raises:
        CheckpointError, ConfigError: it is another run.
    """
    if not folder.ended():
        return False
    start = Start(folder, folder.read_config(), resumes=True)
    return choose_config(training_parser().parse_args(words), start).as_dict() == start.config


def reached(published: PublishedResult, runs: Sequence[Sequence[Event]]) -> list[float]:
    """The accuracy of each run after the epoch of the published figure."""
    epochs = [next((e for e in epochs if e["epoch"] == published.epoch), epochs[-1]) for epochs in runs]
    return [event[f"{published.kind}_accuracy"] for event in epochs]


def compare(
    name: str, published: PublishedResult, runs: Sequence[Sequence[Event]], in_torch: Sequence[Sequence[Event]] = ()
) -> tuple[str, ...]:
    """A row of the table: a published figure, and the accuracies of dpcnn and of PyTorch after the same epoch."""
    ours, theirs = reached(published, runs), reached(published, in_torch)
    seconds = [sum(e["seconds"] for e in epochs if e["epoch"] <= published.epoch) for epochs in runs]
    return (
        name,
        read_recipe(name).optimizer,
        f"{published.kind}, epoch {published.epoch}",
        f"{published.accuracy:.4f}" + (f" ({published.note})" if published.note else ""),
        f"{median(ours):.4f}",
        " ".join(f"{accuracy:.4f}" for accuracy in ours),
        f"{median(seconds):.0f} s",
        f"{median(theirs):.4f}" if theirs else "",
        " ".join(f"{accuracy:.4f}" for accuracy in theirs),
    )


def table(rows: Sequence[Sequence[str]], ranks: int) -> str:
    """The table of these rows, under a line that describes the machine."""
    numerics = fingerprint()
    ours, theirs = ("dpcnn, median", "per seed", "training"), ("PyTorch, median", "per seed")
    header = ("recipe", "optimizer", "accuracy", "published", *ours, *theirs)
    machine = f"{processor()}; {count_of(ranks, 'rank')}; NumPy {numerics['numpy']}, {numerics['blas']}"
    return f"{machine}\n\n{markdown(header, rows)}"
