"""Batch scripts of trainings: templates for Slurm and PBS, filled in and submitted."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from dpcnn.base.files import read_bytes, write_file
from dpcnn.cluster.stopping import seconds_of
from dpcnn.errors import ConfigError, LaunchError, printable


class Scheduler(NamedTuple):
    """A scheduler: its template in cluster/jobs/, and the command that submits a script."""

    template: str
    sender: str


SCHEDULERS = {
    "slurm": Scheduler("slurm.sbatch", "sbatch"),
    "pbs": Scheduler("pbs.sh", "qsub"),
}
LEAD = 120  # seconds before a job's end at which Slurm signals it, or a fifth of a short job's time


def environment() -> str:
    """The shell line that enters the environment of this Python."""
    if sys.prefix == sys.base_prefix:
        return "# module load .. ; . ENVIRONMENT/bin/activate"
    return f". {shlex.quote(sys.prefix)}/bin/activate"


@dataclass(frozen=True)
class BatchJob:
    """A training as a batch job.

    Attributes:
        run: the folder of the run.
        scheduler: a key of SCHEDULERS.
        ranks_per_node: one rank per core.
        memory: GB per rank.
        time: as Slurm writes it.
        starter: the command that starts the ranks; None: one in whose jobs ranks survive the death of others, or else
            the usual one of the scheduler.
        setup: the shell line that makes dpcnn available.
        words: arguments of dpcnn.train.
    """

    run: Path
    scheduler: str
    nodes: int
    ranks_per_node: int
    memory: int
    time: str
    starter: str | None
    setup: str
    words: Sequence[str]

    def __post_init__(self) -> None:
        for value in (str(self.run), self.time, self.starter or "", self.setup, *self.words):
            if not value.isprintable():
                raise ConfigError(f"{printable(value)}: a batch script can't hold control characters; rename it")
        if self.run.exists() and not self.run.is_dir():
            raise ConfigError(f"{self.run}: a file; give the folder of the run, which the job creates")

    @property
    def path(self) -> Path:
        """The path of the script: beside the run's folder."""
        return Path(f"{self.run}{Path(SCHEDULERS[self.scheduler].template).suffix}")

    def script(self) -> str:
        """The template of the scheduler with the values of this job.

        Raises:
            ConfigError: ``time`` is not understood.
        """
        template = files("dpcnn") / "cluster" / "jobs" / SCHEDULERS[self.scheduler].template
        values = self._values()
        return re.sub("@([a-z_]+)@", lambda match: values[match[1]], template.read_text(encoding="utf-8"))

    def _values(self) -> dict[str, str]:
        seconds = seconds_of(self.time, "--time")
        hours, rest = divmod(seconds, 3600)
        return {
            "nodes": str(self.nodes),
            "ranks_per_node": str(self.ranks_per_node),
            "memory": f"{self.memory}G",
            "memory_per_node": f"{self.memory * self.ranks_per_node}gb",
            "time": f"{hours:02}:{rest // 60:02}:{rest % 60:02}",
            "lead": str(min(LEAD, seconds // 5)),
            "setup": self.setup,
            "starter": self.starter or "",
            "words": shlex.join([str(self.run), *self.words]),
            "run": shlex.quote(str(self.run)),
            "arguments": shlex.quote(shlex.join(self.words)) if self.words else "",
            "script": shlex.quote(str(self.path)),
        }

    def send(self) -> str:
        """Write the script, unless it exists with the same content, and submit it.

        Returns:
            The output of the scheduler.

        Raises:
            ConfigError: ``path`` exists with other content.
            LaunchError: this machine has no such scheduler, or it refuses the job.
        """
        sender, path, content = SCHEDULERS[self.scheduler].sender, self.path, self.script().encode()
        if shutil.which(sender) is None:
            raise LaunchError(f"--send: no {sender} on the PATH; run this on a login node, or omit --send")
        if path.exists() and read_bytes(path) != content:
            raise ConfigError(f"{path}: exists already with other content; submit it with {sender}, or delete it")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
        done = subprocess.run([sender, str(path)], capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise LaunchError(f"{sender} refuses {path}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()
