"""What the metrics of a run tell, also while it goes on."""

import json
import time
from pathlib import Path

import pytest

from dpcnn.runs.events import MEASURED


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(folder: Path) -> list[dict]:
    """The events without what differs between two runs of the same result."""
    return [{key: value for key, value in event.items() if key not in MEASURED} for event in events(folder)]


def until_step(folder: Path, step: int, job, limit: float = 60.0) -> None:
    """Wait until a job that trains has taken some steps."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and job.process.poll() is None:
        if last_step(folder) >= step:
            return
        time.sleep(0.02)
    job.kill()
    pytest.fail(f"no step {step} in {limit} s: {job.wait().err}")


def last_step(folder: Path) -> int:
    """The last step that a job that trains has recorded."""
    return max((event["step"] for event in _whole_lines(folder)), default=0)


def _whole_lines(folder: Path) -> list[dict]:
    """The events so far, without a line that is still being written."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]
