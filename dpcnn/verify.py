"""Prove on this machine that ranks change nothing: python -m dpcnn.verify"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import node
from tempfile import TemporaryDirectory
from typing import Any

from dpcnn import __version__
from dpcnn.base.files import write_file
from dpcnn.base.text import text
from dpcnn.cli import DONE, FAULT, Parser, add_config_flags, given, retype, run
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.parallel.comm import Alone
from dpcnn.parallel.launch import check_starter, descendants, usual_launcher
from dpcnn.runs.checkpoint import Checkpoint, read
from dpcnn.runs.events import Event, read_events

TIMES = ("seconds", "images_per_second")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0 if all runs agree, 1 if not."""
    return run(lambda _: verify(_parser().parse_args(argv)), comm=Alone())


def _parser() -> Parser:
    parser = Parser(prog="dpcnn.verify", description=__doc__)
    parser.add_argument("--ranks", default="1,2,3,4", help="numbers of ranks to compare (default 1,2,3,4)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run (default 20)")
    parser.add_argument(
        "--launcher",
        default=usual_launcher(),
        help='starts the ranks, with "-n RANKS" behind it (default mpirun; srun in an allocation without mpirun)',
    )
    parser.add_argument(
        "--receipt", type=Path, default=Path("verify.json"), help="what was found (default verify.json)"
    )
    parser.add_argument("--recipe", metavar="NAME|FILE", help="options to start from (default simple-cnn)")
    add_config_flags(parser)
    return parser


@dataclass(frozen=True)
class Outcome:
    """One run: how it was made, what it recorded, and its last checkpoint."""

    name: str
    events: list[Event]
    checkpoint: Checkpoint


def verify(options: Namespace) -> int:
    """Run the same training on several numbers of ranks, kill and resume one more, and compare all."""
    counts = _counts(options)
    check_starter("verify", options.launcher)
    outcomes = []
    with TemporaryDirectory(prefix="dpcnn-verify-") as work:
        for count in counts:
            print(f"{options.steps} steps on {ranks(count)}", flush=True)
            outcomes.append(finish(start(options, count, Path(work) / str(count)), ranks(count)))
        first, second = counts[-1], counts[0]
        print(f"{options.steps} steps on {ranks(first)}, killed on the way and resumed on {ranks(second)}", flush=True)
        killed = kill_half_way(start(options, first, Path(work) / "killed"), options.steps)
        resumed = start(options, second, killed.folder, "--resume")
        outcomes.append(finish(resumed, f"{ranks(first)}, killed at {killed.step}, then {second}"))
    differences = [first_difference(outcomes[0].events, outcome.events) for outcome in outcomes]
    rows = [
        (outcome.name, outcome.checkpoint.weights_sha256[:16], "FAIL" if difference else "PASS", difference or "")
        for outcome, difference in zip(outcomes, differences, strict=True)
    ]
    print(text(("run", "weights", "verdict", "first difference"), rows))
    write_receipt(options.receipt, outcomes, differences)
    print(f"{'FAIL' if any(differences) else 'PASS'}; receipt: {options.receipt}")
    return FAULT if any(differences) else DONE


def _counts(options: Namespace) -> list[int]:
    words = options.ranks.split(",")
    if len(words) < 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--ranks: expected at least two numbers such as 1,2,3,4, not {options.ranks}")
    if options.steps < 4:
        raise ConfigError(f"--steps: must be at least 4, not {options.steps}")
    return [int(word) for word in words]


def ranks(count: int) -> str:
    """A number of ranks in words."""
    return f"{count} rank{'s' * (count > 1)}"


@dataclass
class Running:
    """A training under way; ``step``: the last that was seen."""

    process: "subprocess.Popen[str]"
    folder: Path
    step: int = 0


def start(options: Namespace, count: int, folder: Path, *more: str) -> Running:
    """Start a training on ``count`` ranks that records the hash of every step."""
    flags = {} if more else given(options)
    flags |= {"max_steps": options.steps, "guard_every": 1, "checkpoint_every": max(1, options.steps // 4)}
    recipe = ["--recipe", options.recipe] if options.recipe and not more else []
    launcher = [*shlex.split(options.launcher), "-n", str(count)]
    words = [*recipe, *retype(flags), *more, "--no-curves", "--out", str(folder)]
    command = [*launcher, sys.executable, "-m", "dpcnn.train", *words]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return Running(process, folder)


def finish(running: Running, name: str) -> Outcome:
    """Wait for a training's end.

    Raises:
        LaunchError: it failed, with its own line.
    """
    _, err = running.process.communicate()
    if running.process.returncode:
        lines = [line for line in err.splitlines() if line.strip(" -")] or ["it said nothing"]
        said = [line for line in lines if line.startswith("dpcnn: ")] or lines
        raise LaunchError(f"the run on {name} ended with status {running.process.returncode}: {said[0]}")
    checkpoint = read(running.folder / "checkpoints" / "last.h5")
    return Outcome(name, read_events(running.folder / "metrics.jsonl"), checkpoint)


def kill_half_way(running: Running, steps: int) -> Running:
    """SIGKILL to all ranks of a training once it has taken half of its steps; their launcher then ends by itself."""
    metrics = running.folder / "metrics.jsonl"
    while running.step < steps // 2 and running.process.poll() is None:
        time.sleep(0.002)
        if metrics.exists():
            running.step = metrics.read_text().count('"hash"')
    for pid in descendants(running.process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.process.communicate()
    return running


def first_difference(expected: Sequence[Event], found: Sequence[Event]) -> str | None:
    """Where two records of a run part, times apart: the step and the parameter; None if nowhere."""
    for ours, theirs in zip(expected, found, strict=False):
        for key in ours:
            if key not in TIMES and ours[key] != theirs.get(key):
                if key == "parameters" and isinstance(theirs.get(key), dict):
                    key = next(name for name in ours[key] if ours[key][name] != theirs[key].get(name))
                return f"step {ours.get('step', ours.get('steps'))}, {key}"
    return None if len(expected) == len(found) else f"{len(found)} lines of metrics instead of {len(expected)}"


def write_receipt(path: Path, outcomes: Sequence[Outcome], differences: Sequence[str | None]) -> None:
    """What was run, on what, and what came out, as JSON."""
    checkpoint = outcomes[0].checkpoint
    receipt: dict[str, Any] = {
        "verdict": "FAIL" if any(differences) else "PASS",
        "dpcnn": __version__,
        "host": node(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "config": asdict(checkpoint.config),
        "data": checkpoint.data,
        "fingerprint": checkpoint.fingerprint,
        "runs": [
            {
                "run": outcome.name,
                "weights_sha256": outcome.checkpoint.weights_sha256,
                "first_difference": difference,
                "hashes": {event["step"]: event["parameters"] for event in outcome.events if event["event"] == "hash"},
            }
            for outcome, difference in zip(outcomes, differences, strict=True)
        ],
    }
    write_file(path, json.dumps(receipt, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
