"""Throw mutated files at every command: python tests/fuzz/fuzz.py --seconds 600

Whatever a file holds, a command must end with status 0, or with status 2 and one line; in 10 seconds, besides those in
which other processes keep the cores busy; in 1 GB, or five times the file; with nothing written elsewhere, and nothing
on the terminal that could steer it. A run prints its seed.
A case is a function of that seed and its number: --seed S --case N repeats it.
"""

import argparse
import importlib
import io
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import dpcnn  # noqa: F401  first: it settles the BLAS environment before NumPy is loaded

import numpy as np  # isort: skip
from targets import TARGETS, WEIGHTS, make_sources

from dpcnn import cli
from dpcnn.parallel.comm import SerialComm

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 1 << 30

COMMANDS = "train training evaluate predict plot report export import forecast bench data.__main__".split()

MADE = """
data prepare plain.npz --out set --shards 2
data prepare plain.npz --out mapped --shards 2 --contiguous
train --recipe recipe.toml --data set --out run --no-curves
export run --format safetensors --out net.safetensors
bench --recipe recipe.toml --data set --steps 2 --json bench.json
data prepare fine.npz --out fine --shards 2
data prepare values.npz --out valued --shards 2 --targets values
train --recipe recipe.toml --data valued --loss huber --out regression --no-curves
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--case", type=int, help="this one alone, and show what it prints")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    faults, counts = fuzz(options.seed, options.seconds, options.cases, options.case)
    print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(f"{sum(counts.values())} cases, {len(faults)} faults")
    return 1 if faults else 0


def fuzz(seed: int, seconds: float, cases: int, only: int | None = None) -> tuple[list[str], Counter[str]]:
    """Cases until the time is over; returns the faults, each a line, and how many cases each target had."""
    faults, counts, until = [], Counter[str](), time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="dpcnn-fuzz-") as work:
        base = Path(work) / "base"
        make_base(base)
        before = snapshot(base)
        numbers = [only] if only is not None else range(cases)
        for number in numbers:
            if time.monotonic() > until:
                break
            rng = np.random.default_rng([seed, number])
            target = TARGETS[rng.choice(len(TARGETS), p=WEIGHTS)]
            folder = Path(work) / "case"
            shutil.copytree(base, folder, symlinks=True)
            words, size = target.make(folder, rng)
            fault = examine(folder, words, size, show=only is not None)
            if not fault and snapshot(base) != before:
                fault = "wrote outside its folder"
            counts[target.name] += 1
            if fault:
                faults.append(f"case {number}, {target.name}, {' '.join(words)}: {fault}")
                print(faults[-1], flush=True)
            shutil.rmtree(folder)
    return faults, counts


def examine(folder: Path, words: list[str], size: int, show: bool) -> str:
    """Run a command in a process of its own; what is wrong with how it ends, or nothing."""
    out, err = folder / ".out", folder / ".err"
    child = os.fork()
    if not child:
        os._exit(behave(folder, words, out, err))
    started = time.monotonic()
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        elapsed = time.monotonic() - started
        if elapsed > LIMIT_SECONDS and elapsed - waited_for_a_core(child) > LIMIT_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return f"hangs for {LIMIT_SECONDS} s"
        time.sleep(0.002)
    said, wrong = (path.read_bytes().decode(errors="replace") for path in (out, err))
    if show:
        print(said, wrong, sep="\n")
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)}"
    return judge(os.waitstatus_to_exitcode(status), said, wrong, usage.ru_maxrss << 10, size)


def waited_for_a_core(process: int) -> float:
    """Seconds in which a process was ready to run, but other processes had the cores."""
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9


def behave(folder: Path, words: list[str], out: Path, err: Path) -> int:
    """The command, in the child: its exit status."""
    try:
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (4 * LIMIT_BYTES, 4 * LIMIT_BYTES))
        for path, stream in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(stream, "wb", 0), write_through=True) for stream in (1, 2))
        module = importlib.import_module("dpcnn.data.__main__" if words[0] == "data" else f"dpcnn.{words[0]}")
        status: int = module.main(words[1:])
        return status
    except BaseException:
        traceback.print_exc()
        return 99


def judge(status: int, said: str, wrong: str, memory: int, size: int) -> str:
    """What is wrong with the end of a command, or nothing."""
    lines = wrong.strip().splitlines()
    if status not in (0, 2):
        return f"status {status}: {lines[-1] if lines else ''}"
    if status == 2 and (len(lines) != 1 or not lines[0].startswith("dpcnn: error: ")):
        return f"not one line: {wrong[-500:]!r}"
    if status == 0 and ("Traceback" in wrong or "Warning" in wrong):
        return f"says {wrong[-300:]!r}"
    if any(not c.isprintable() and c not in "\n\t" for c in said + wrong):
        return f"prints what could steer a terminal: {wrong[-300:]!r}"
    most = max(LIMIT_BYTES, 5 * size)
    return f"takes {memory >> 20} MiB" if memory > most else ""


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def make_base(base: Path) -> None:
    """Real files of every kind, as the commands write them."""
    others = [
        "matplotlib.figure",
        "onnx",
        "safetensors.numpy",
        "PIL.ImageOps",
        "PIL.TiffImagePlugin",
        "PIL.WebPImagePlugin",
    ]
    for name in [*others, *(f"dpcnn.{name}" for name in COMMANDS)]:
        importlib.import_module(name)  # once, and not in each child
    make_sources(base)
    for line in MADE.strip().splitlines():
        child = os.fork()
        if not child:
            os._exit(behave(base, line.split(), base / ".out", base / ".err"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (line, (base / ".err").read_text())


cli.world = SerialComm  # these commands need no MPI, whose start would take most of the time


if __name__ == "__main__":
    sys.exit(main())
