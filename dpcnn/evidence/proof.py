"""The proof that the number of ranks changes nothing: runs on several numbers of ranks, compared step by step."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import randrange
from tempfile import TemporaryDirectory
from typing import Any

from dpcnn.base.startup import environment
from dpcnn.base.text import text
from dpcnn.errors import LaunchError
from dpcnn.evidence.jobs import command, complaint, config_words
from dpcnn.parallel.launch import descendants
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.events import MEASURED, Event, read_events

SURVIVING = " --with-ft ulfm"
"""The words after Open MPI's mpirun with which ranks survive the death of one."""

OWN = "max_steps", "drift_check_every", "checkpoint_every"
"""Options of the trainings that depend on the number of steps, and not on the user."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its name, its events, and its last checkpoint."""

    name: str
    events: list[Event]
    checkpoint: Checkpoint


@dataclass
class Running:
    """A training that has been started.

    Attributes:
        step: the last step in the run's metrics so far.
    """

    process: "subprocess.Popen[str]"
    folder: Path
    step: int = 0


@dataclass(frozen=True)
class Training:
    """The training that all runs share.

    Attributes:
        launcher: the command that starts the ranks.
        recipe: a name or a file; None: the default recipe.
        flags: the config values that replace those of the recipe.
        steps: of each run.
    """

    launcher: str
    recipe: str | None
    flags: Mapping[str, Any]
    steps: int

    def start(self, count: int, folder: Path) -> Running:
        """Start a run on ``count`` ranks in a new folder."""
        return self._start(count, folder, self.recipe, self.flags)

    def resume(self, count: int, folder: Path) -> Running:
        """Resume the run in ``folder`` on ``count`` ranks."""
        imports = {"imports": self.flags["imports"]} if "imports" in self.flags else {}  # the files import nothing
        return self._start(count, folder, None, imports, "--resume")

    def _start(self, count: int, folder: Path, recipe: str | None, flags: Mapping[str, Any], *more: str) -> Running:
        own = dict(zip(OWN, (self.steps, 1, max(1, self.steps // 4)), strict=True))
        words = [*config_words(recipe, {**flags, **own}), *more, "--no-curves", "--out", str(folder)]
        process = subprocess.Popen(
            command("dpcnn.train", *words, launcher=self.launcher, ranks=count),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        return Running(process, folder)


def run_all(training: Training, counts: Sequence[int], kills: int, say: Callable[[str], None]) -> list[Outcome]:
    """Run a training on each number of ranks, and once more killed on the last number and resumed on the first.

    Then run it ``kills`` times on the last number of ranks, and kill a random rank at a random step.
    """
    with TemporaryDirectory(prefix="dpcnn-verify-") as work:
        outcomes = run_each(training, counts, Path(work), say)
        first, second = counts[-1], counts[0]
        say(f"{training.steps} steps on {ranks(first)}, killed on the way and resumed on {ranks(second)}")
        killed = kill_half_way(training.start(first, Path(work) / "killed"), training.steps)
        resumed = training.resume(second, killed.folder)
        outcomes.append(finish(resumed, f"{ranks(first)}, killed at {killed.step}, then {second}"))
        surviving = replace(training, launcher=training.launcher + SURVIVING)
        for number in range(kills):
            victim, step = randrange(first), randrange(training.steps)
            say(f"{training.steps} steps on {ranks(first)}, rank {victim} killed after step {step}")
            running = surviving.start(first, Path(work) / f"survived-{number}")
            kill_rank(running, victim, step)
            outcomes.append(finish(running, f"{ranks(first)}, rank {victim} killed"))
    return outcomes


def run_each(training: Training, counts: Sequence[int], work: Path, say: Callable[[str], None]) -> list[Outcome]:
    """Run a training on each number of ranks, in new folders below ``work``."""
    outcomes = []
    for count in counts:
        say(f"{training.steps} steps on {ranks(count)}")
        outcomes.append(finish(training.start(count, work / str(count)), ranks(count)))
    return outcomes


def ranks(count: int) -> str:
    """A number of ranks in words."""
    return f"{count} rank{'s' * (count > 1)}"


def finish(running: Running, name: str) -> Outcome:
    """Wait for the end of a run.

    Raises:
        LaunchError: the run failed; the message has a line of its stderr.
    """
    _, stderr = running.process.communicate()
    if status := running.process.returncode:
        raise LaunchError(f"the run on {name} ended with status {status}: {complaint(stderr, 0)}")
    checkpoint = read(running.folder / "checkpoints" / "last.h5")
    events = read_events(running.folder / "metrics.jsonl")
    dead = [lost for event in events if event["event"] == "death" for lost in event["lost"]]
    more = f" ({', '.join(dead)} died)" if dead else ""
    return Outcome(name + more, [event for event in events if event["event"] != "death"], checkpoint)


def kill_half_way(running: Running, steps: int) -> Running:
    """Send SIGKILL to all ranks once the run has taken half of its steps; their launcher then ends by itself."""
    wait_for_step(running, steps // 2)
    for pid in descendants(running.process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.process.communicate()
    return running


def wait_for_step(running: Running, step: int) -> None:
    """Wait until a run has taken so many steps, and has begun in any case; or until it has ended."""
    metrics = running.folder / "metrics.jsonl"
    while running.process.poll() is None and (running.step < step or not metrics.exists()):
        time.sleep(0.002)
        if metrics.exists():
            running.step = metrics.read_text().count('"hash"')


def kill_rank(running: Running, rank: int, step: int) -> None:
    """Send SIGKILL to a rank of Open MPI once the run has taken so many steps."""
    wait_for_step(running, step)
    for pid in descendants(running.process.pid):  # a rank comes before its own children
        try:
            if f"OMPI_COMM_WORLD_RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                return
        except OSError:
            continue


def differences(outcomes: Sequence[Outcome]) -> list[str | None]:
    """The first difference of each run from the first run."""
    return [first_difference(outcomes[0].events, outcome.events) for outcome in outcomes]


def first_difference(expected: Sequence[Event], found: Sequence[Event]) -> str | None:
    """The step and the parameter (or other value) in which two runs first differ, apart from times; None: no
    difference."""
    for ours, theirs in zip(expected, found, strict=False):
        for key in ours:
            if key not in MEASURED and ours[key] != theirs.get(key):
                if key == "parameters" and isinstance(theirs.get(key), dict):
                    key = next(name for name in ours[key] if ours[key][name] != theirs[key].get(name))
                return f"step {ours.get('step', ours.get('steps'))}, {key}"
    return None if len(expected) == len(found) else f"{len(found)} lines of metrics instead of {len(expected)}"


def verdict(different: Sequence[str | None]) -> str:
    """PASS, or FAIL if any run differs."""
    return "FAIL" if any(different) else "PASS"


def table(outcomes: Sequence[Outcome], different: Sequence[str | None]) -> str:
    """A row for each run."""
    rows = [
        (outcome.name, outcome.checkpoint.weights_sha256[:16], verdict([difference]), difference or "")
        for outcome, difference in zip(outcomes, different, strict=True)
    ]
    return text(("run", "weights", "verdict", "first difference"), rows)
