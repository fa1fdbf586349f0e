"""Comparisons of speed between jobs, which take turns so that other load on the machine affects all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dpcnn.base.fields import load_json
from dpcnn.base.files import read_bytes
from dpcnn.base.text import markdown
from dpcnn.config import Config
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.evidence.jobs import config_words, run
from dpcnn.evidence.measure import Result
from dpcnn.reporting.figures import draw_scaling

LAYOUTS = ("nchw", "channels-last")
"""Memory layouts of PyTorch's images."""

Speeds = dict[str, dict[int, list[float]]]
"""Images per second in each round, by kind of scaling and number of ranks."""

Round = dict[str, float]
"""Images per second of dpcnn and of PyTorch in each layout, and the fraction of the sgemm limit that dpcnn reaches."""


@dataclass(frozen=True)
class Jobs:
    """The jobs of a comparison.

    Attributes:
        launcher: the command that starts the ranks.
        recipe: a name or a file; None: the default recipe.
        flags: the config values that replace those of the recipe.
        config: the recipe with these values.
        steps: of each measurement.
        rounds: the number of measurements of each job.
        say: shows the progress.
    """

    launcher: str
    recipe: str | None
    flags: Mapping[str, Any]
    config: Config
    steps: int
    rounds: int
    say: Callable[[str], None]

    def turns(self) -> Iterator[int]:
        """The rounds, each of them announced."""
        for number in range(self.rounds):
            self.say(f"round {number + 1} of {self.rounds}")
            yield number

    def measure(self, ranks: int, batch: int, microbatch: int = 0) -> Result:
        """Run ``dpcnn.bench`` on ``ranks`` ranks; microbatch 0: as configured."""
        flags = {**self.flags, "batch": batch} | ({"microbatch": microbatch} if microbatch else {})
        with TemporaryDirectory(prefix="dpcnn-bench-") as work:
            path = Path(work) / "result.json"
            words = [*config_words(self.recipe, flags), "--steps", str(self.steps), "--json", str(path)]
            run("dpcnn.bench", *words, launcher=self.launcher, ranks=ranks)
            result: Result = load_json(read_bytes(path))
        return result

    def measure_torch(self, ranks: int, batch: int, layout: str) -> float:
        """Images per second of PyTorch DDP; ``batch`` is per rank."""
        words = ["--ranks", ranks, "--batch", batch, "--steps", self.steps, "--layout", layout]
        config = self.config
        if config.layers or config.loss != "cross-entropy":
            raise ConfigError("--versus: PyTorch's side has the networks of --model and cross-entropy only")
        smoothing = config.parts["label_smoothing"]
        words += ["--model", config.model, "--data", config.data, "--smoothing", smoothing]
        return float(run("dpcnn.evidence.peers.torch_ddp", *map(str, words)).strip().splitlines()[-1])


def scaling(jobs: Jobs, counts: Sequence[int]) -> tuple[Result, str]:
    """Compare numbers of ranks, and draw their speeds to scaling.png and scaling.svg.

    Strong scaling keeps the batch, weak scaling the batch per rank.

    Returns:
        A dictionary with all speeds and the machine; and a table.
    """
    batch = jobs.config.batch
    batches = {"strong": dict.fromkeys(counts, batch), "weak": {count: count * batch for count in counts}}
    speeds: Speeds = {kind: {count: [] for count in counts} for kind in batches}
    last: dict[int, Result] = {}
    for _ in jobs.turns():
        for kind, of_kind in batches.items():
            for count, whole in of_kind.items():
                last[count] = jobs.measure(count, whole, batch if kind == "weak" else 0)
                speeds[kind][count].append(last[count]["images_per_second"])
    medians = {kind: {count: median(rates) for count, rates in of.items()} for kind, of in speeds.items()}
    text = f"{scaling_table(counts, batches, speeds)}\n\n{draw_scaling(medians, Path('scaling'))}"
    return {"speeds": speeds, "machine": last[counts[0]]["machine"]}, text


def scaling_table(counts: Sequence[int], batches: Mapping[str, Mapping[int, int]], speeds: Speeds) -> str:
    """A row for each kind of scaling and number of ranks."""
    rows = []
    for kind, rates in speeds.items():
        base = median(rates[counts[0]])
        for count in counts:
            middle, extent = median(rates[count]), f"{min(rates[count]):,.0f} to {max(rates[count]):,.0f}"
            rows.append((kind, count, batches[kind][count], f"{middle:,.0f}", extent, f"{middle / base:.2f}"))
    return markdown(("scaling", "ranks", "batch", "images/s", "range", f"times {counts[0]} ranks"), rows)


def versus(jobs: Jobs, ranks: int, batches: Sequence[int]) -> tuple[Result, str]:
    """Compare with PyTorch DDP in both of its layouts: the same network, data and batch.

    Args:
        batches: per rank.

    Returns:
        All speeds and the machine; and a table.

    Raises:
        LaunchError: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise LaunchError("--versus torch: PyTorch is not installed; get it: pip install 'dpcnn[torch]'")
    rounds: dict[int, list[Round]] = {batch: [] for batch in batches}
    last: Result = {}
    for _ in jobs.turns():
        for batch in batches:
            last = jobs.measure(ranks, ranks * batch, batch)
            torch = {layout: jobs.measure_torch(ranks, batch, layout) for layout in LAYOUTS}
            rounds[batch].append({"dpcnn": last["images_per_second"], "limit": last["fraction_of_limit"], **torch})
    machine = last["machine"]
    text = f"{machine['processor']}; {ranks} ranks; {jobs.rounds} rounds; images/s are medians"
    table = versus_table([(batch, rounds[batch]) for batch in batches])
    return {"rounds": rounds, "machine": machine}, f"{text}\n\n{table}"


def versus_table(rounds_by_batch: Sequence[tuple[int, Sequence[Round]]]) -> str:
    """A row for each batch; the ratio is that of dpcnn to PyTorch's faster layout."""
    rows = []
    for batch, rounds in rounds_by_batch:
        ratios = [of["dpcnn"] / max(of[layout] for layout in LAYOUTS) for of in rounds]
        speeds = [f"{median(of[key] for of in rounds):,.0f}" for key in ("dpcnn", *LAYOUTS)]
        extent = f"{min(ratios):.2f} to {max(ratios):.2f}"
        limit = f"{median(of['limit'] for of in rounds):.0%}"
        rows.append((batch, *speeds, f"{median(ratios):.2f}", extent, limit))
    torch = ("DDP, NCHW", "DDP, channels-last")
    return markdown(("batch per rank", "dpcnn", *torch, "ratio, median", "range", "of the sgemm limit"), rows)
