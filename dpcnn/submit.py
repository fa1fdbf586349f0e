"""A batch job of a training: dpcnn submit RUN [--nodes N] [--time T] .. [-- arguments of dpcnn.train]"""

import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from dpcnn.base.files import read_bytes, write_file
from dpcnn.cli import DONE, Parser, override, parse, run
from dpcnn.cluster.stopping import seconds_of
from dpcnn.config import read_recipe
from dpcnn.errors import ConfigError, LaunchError
from dpcnn.parallel.comm import Alone
from dpcnn.training.resume import RECIPE
from dpcnn.training.run import training_parser

TEMPLATES = {"slurm": "slurm.sbatch", "pbs": "pbs.sh"}
SENDERS = {"slurm": "sbatch", "pbs": "qsub"}
STARTERS = {"slurm": "srun --mpi=pmix", "pbs": "mpirun"}
LEAD = 120  # seconds before a job's end at which Slurm signals it, or a fifth of a short job's time


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run(lambda comm: submit(comm, argv), comm=Alone())


def submit(comm: Alone, argv: Sequence[str] | None) -> int:
    """Print the script, or write it beside the run's folder and hand it to the scheduler."""
    parser = Parser(prog="dpcnn.submit", description=__doc__, epilog="After --: arguments of dpcnn.train.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder: begun, or gone on with")
    parser.add_argument("--scheduler", choices=sorted(TEMPLATES), default="slurm", help="(default slurm)")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="(default 1)")
    parser.add_argument("--ranks-a-node", type=int, default=16, metavar="N", help="one a core (default 16)")
    parser.add_argument("--memory", type=int, default=1, metavar="GB", help="of a rank (default 1)")
    parser.add_argument("--time", default="1:00:00", help="minutes, H:M:S or D-H:M:S (default 1:00:00)")
    parser.add_argument("--starter", help="starts the ranks (default srun --mpi=pmix, or mpirun under PBS)")
    parser.add_argument("--setup", default=environment(), metavar="LINE", help="shell line that makes dpcnn available")
    parser.add_argument("--send", action="store_true", help="submit it, and keep it beside the run's folder")
    typed = list(sys.argv[1:] if argv is None else argv)
    own, words = (typed[: typed.index("--")], typed[typed.index("--") + 1 :]) if "--" in typed else (typed, [])
    options = parse(parser, own, comm)
    for name in ("nodes", "ranks_a_node", "memory"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1, not {getattr(options, name)}")
    check_training(words)
    path = Path(f"{options.run}{Path(TEMPLATES[options.scheduler]).suffix}")
    text = script(options, words, path)
    if options.send:
        send(options.scheduler, path, text)
    else:
        print(text, end="")
    return DONE


def environment() -> str:
    """The line that enters the environment in which this Python runs."""
    if sys.prefix == sys.base_prefix:
        return "# module load .. ; . ENVIRONMENT/bin/activate"
    return f". {shlex.quote(sys.prefix)}/bin/activate"


def check_training(words: Sequence[str]) -> None:
    """Look at what a training would be given, here and not when the job has waited for hours.

    Raises:
        ConfigError: it would be refused.
    """
    typed = training_parser().parse_args(list(words))
    for flag in ("out", "resume"):
        if getattr(typed, flag) is not None:
            raise ConfigError(f"--{flag}: the job gives this itself; name the run's folder before the --")
    override(read_recipe(typed.recipe or RECIPE), typed)


def script(options: Namespace, words: Sequence[str], path: Path) -> str:
    """The job's script.

    Raises:
        ConfigError: ``options.time`` is not understood.
    """
    seconds = seconds_of(options.time)
    hours, rest = divmod(seconds, 3600)
    return fill(
        options.scheduler,
        {
            "nodes": str(options.nodes),
            "ranks_a_node": str(options.ranks_a_node),
            "memory": f"{options.memory}G",
            "memory_a_node": f"{options.memory * options.ranks_a_node}gb",
            "time": f"{hours:02}:{rest // 60:02}:{rest % 60:02}",
            "lead": str(min(LEAD, seconds // 5)),
            "setup": options.setup,
            "starter": options.starter or STARTERS[options.scheduler],
            "words": shlex.join([str(options.run), *words]),
            "run": shlex.quote(str(options.run)),
            "arguments": shlex.quote(shlex.join(words)) if words else "",
            "script": str(path),
        },
    )


def fill(scheduler: str, values: Mapping[str, str]) -> str:
    """A template with its places filled."""
    template = (files("dpcnn") / "cluster" / "jobs" / TEMPLATES[scheduler]).read_text(encoding="utf-8")
    return re.sub("@([a-z_]+)@", lambda place: values[place[1]], template)


def send(scheduler: str, path: Path, text: str) -> None:
    """Write the script, unless it is there, and submit it.

    Raises:
        ConfigError: another script is there.
        LaunchError: there is no such scheduler here, or it refuses.
    """
    sender = SENDERS[scheduler]
    if shutil.which(sender) is None:
        raise LaunchError(f"--send: no {sender} on the PATH; type this on a login node, or leave --send away")
    if path.exists() and read_bytes(path) != text.encode():
        raise ConfigError(f"{path}: another script is there already; submit it by {sender}, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, text.encode())
    done = subprocess.run([sender, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(f"{sender} refuses {path}: {(done.stderr or done.stdout).strip()}")
    print(f"{path}: {done.stdout.strip()}")


if __name__ == "__main__":
    sys.exit(main())
