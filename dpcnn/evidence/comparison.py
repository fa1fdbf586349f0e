"""Comparisons of speed between jobs, which take turns so that other load on the machine affects all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dpcnn.base.fields import load_json
from dpcnn.base.files import read_bytes
from dpcnn.base.text import count_of, markdown
from dpcnn.config import Config
from dpcnn.evidence.jobs import config_words, run
from dpcnn.evidence.measure import Result
from dpcnn.reporting.scaling import draw_scaling

Speeds = dict[str, dict[int, list[float]]]
"""Images per second in each round, by kind of scaling and number of ranks."""


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
    sizes = f"strong: microbatches of {jobs.config.microbatch}; weak: one microbatch of {batch} per rank"
    text = f"{scaling_table(counts, batches, speeds)}\n\n{sizes}\n{draw_scaling(medians, Path('scaling'))}"
    return {"speeds": speeds, "machine": last[counts[0]]["machine"]}, text


def scaling_table(counts: Sequence[int], batches: Mapping[str, Mapping[int, int]], speeds: Speeds) -> str:
    """A row for each kind of scaling and number of ranks."""
    rows = []
    for kind, rates in speeds.items():
        base = median(rates[counts[0]])
        for count in counts:
            middle, extent = median(rates[count]), f"{min(rates[count]):,.0f} to {max(rates[count]):,.0f}"
            rows.append((kind, count, batches[kind][count], f"{middle:,.0f}", extent, f"{middle / base:.2f}"))
    return markdown(("scaling", "ranks", "batch", "images/s", "range", f"times {count_of(counts[0], 'rank')}"), rows)
