"""The cost of survival: of a step when no rank dies, and of a death."""

import time
from dataclasses import replace
from pathlib import Path
from random import randrange
from statistics import median
from tempfile import TemporaryDirectory

from dpcnn.base.text import count_of, markdown
from dpcnn.errors import LaunchError
from dpcnn.evidence.comparison import Jobs
from dpcnn.evidence.jobs import complaint
from dpcnn.evidence.measure import Result
from dpcnn.evidence.proof import SURVIVING, Training, kill_rank, ranks

POLL = 0.001  # seconds


def survive(jobs: Jobs, count: int) -> tuple[Result, str]:
    """Compare jobs that survive with jobs that do not, in turns; in each round, also kill a random rank.

    Args:
        count: ranks of each job.

    Returns:
        Seconds per step of both kinds of job, and seconds from each death to the next step; and their text.

    Raises:
        LaunchError: a job failed, or did not survive.
    """
    surviving = replace(jobs, launcher=jobs.launcher + SURVIVING)
    training = Training(surviving.launcher, jobs.recipe, jobs.flags, max(jobs.steps, 8))
    seconds: dict[str, list[float]] = {"plain": [], "surviving": []}
    recoveries = []
    machine = {}
    for _ in jobs.turns():
        for kind, of_kind in (("plain", jobs), ("surviving", surviving)):
            measured = of_kind.measure(count, jobs.config.batch)
            machine = measured["machine"]
            seconds[kind].append(measured["seconds_a_step"])
        recoveries.append(time_recovery(training, count))
    result = {"seconds_a_step": seconds, "seconds_to_the_next_step": recoveries, "machine": machine}
    title = f"{machine['processor']}; {machine['mpi']}; {ranks(count)}; {count_of(jobs.rounds, 'round')}"
    return result, f"{title}\n\n{table(result)}"


def time_recovery(training: Training, count: int) -> float:
    """Kill a random rank at a random step; return the seconds until the others have committed the next step.

    Raises:
        LaunchError: the run ended before that.
    """
    with TemporaryDirectory(prefix="dpcnn-bench-") as work:
        running = training.start(count, Path(work) / "run")
        kill_rank(running, randrange(count), randrange(1, training.steps // 2))
        killed = time.monotonic()
        metrics = running.folder / "metrics.jsonl"
        while b'"hash"' not in metrics.read_bytes().partition(b'"death"')[2]:
            if running.process.poll() is not None:
                raise LaunchError(f"a run did not survive: {complaint(running.process.communicate()[1], -1)}")
            time.sleep(POLL)
        seconds = time.monotonic() - killed
        running.process.communicate()
    return seconds


def table(result: Result) -> str:
    """A row for the steps, and a row for the deaths."""
    plain, surviving = (result["seconds_a_step"][kind] for kind in ("plain", "surviving"))
    deaths = result["seconds_to_the_next_step"]
    ratios = [with_survival / without for with_survival, without in zip(surviving, plain, strict=True)]
    rows = [
        ("a step, mpirun", f"{1e3 * median(plain):.1f} ms", _extent(plain)),
        ("a step, mpirun --with-ft ulfm", f"{1e3 * median(surviving):.1f} ms", _extent(surviving)),
        ("their ratio", f"{median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"),
        ("from a rank's death to the next step", f"{1e3 * median(deaths):.0f} ms", _extent(deaths)),
    ]
    return markdown(("time of", "median", "range"), rows)


def _extent(seconds: list[float]) -> str:
    return f"{1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f} ms"
