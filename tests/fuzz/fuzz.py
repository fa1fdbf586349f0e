"""Throw mutated files at every command: python tests/fuzz/fuzz.py --seconds 600

Whatever a file holds, a command must end with status 0, or with status 2 and one line; in 10 seconds; in 1 GB, or five
times the file; with nothing written elsewhere, and nothing on the terminal that could steer it. A run prints its seed.
A case is a function of that seed and its number: --seed S --case N repeats it.
"""

import argparse
import gzip
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dpcnn  # noqa: F401  first: it settles the BLAS environment before NumPy is loaded

import numpy as np  # isort: skip
import mutate
from PIL import Image

from dpcnn import cli
from dpcnn.parallel.comm import Alone

LIMIT_SECONDS, LIMIT_BYTES = 10.0, 1 << 30
SIDE = 12

Rng = np.random.Generator


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
        if time.monotonic() - started > LIMIT_SECONDS:
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
    for name in [
        "matplotlib.figure",
        "onnx",
        "safetensors.numpy",
        "PIL.ImageOps",
        *(f"dpcnn.{name}" for name in COMMANDS),
    ]:
        importlib.import_module(name)  # once, and not in each child
    base.mkdir()
    rng = np.random.default_rng(1)
    images = {split: rng.integers(0, 256, (n, SIDE, SIDE), np.uint8) for split, n in (("train", 60), ("test", 20))}
    labels = {split: (np.arange(len(images[split])) % 3).astype(np.uint8) for split in images}
    arrays = {f"x_{split}": images[split] for split in images} | {f"y_{split}": labels[split] for split in images}
    np.savez(base / "plain.npz", **arrays)
    np.savez_compressed(base / "packed.npz", **arrays)
    for kind in ("idx", "idxgz", "csv"):
        (base / kind).mkdir()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for what, array in (("images-idx3", images[split]), ("labels-idx1", labels[split])):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            content = head + array.tobytes()
            (base / "idx" / f"{prefix}-{what}-ubyte").write_bytes(content)
            (base / "idxgz" / f"{prefix}-{what}-ubyte.gz").write_bytes(gzip.compress(content, mtime=0))
        rows = np.column_stack([labels[split], images[split].reshape(len(labels[split]), -1)])
        np.savetxt(base / "csv" / f"mnist_{split}.csv", rows, "%d", delimiter=",", header="label,pixels", comments="")
    Image.fromarray(255 - images["train"][0]).resize((60, 70)).save(base / "four.png")
    Image.fromarray(images["train"][1]).resize((60, 70)).convert("RGBA").save(base / "alpha.png")
    Image.fromarray(images["train"][2]).resize((64, 64)).save(base / "four.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    (base / "recipe.toml").write_text(RECIPE)
    steps: list[list[str]] = [
        ["data", "prepare", "plain.npz", "--out", "set", "--shards", "2"],
        ["data", "prepare", "plain.npz", "--out", "mapped", "--shards", "2", "--contiguous"],
        ["train", "--recipe", "recipe.toml", "--data", "set", "--out", "run", "--no-curves"],
        ["export", "run", "--format", "safetensors", "--out", "net.safetensors"],
        ["bench", "--recipe", "recipe.toml", "--data", "set", "--steps", "2", "--json", "bench.json"],
    ]
    for words in steps:
        child = os.fork()
        if not child:
            os._exit(behave(base, words, base / ".out", base / ".err"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (words, (base / ".err").read_text())


COMMANDS = (
    "train",
    "training",
    "evaluate",
    "predict",
    "plot",
    "report",
    "export",
    "import",
    "forecast",
    "bench",
    "data.__main__",
)

RECIPE = """model = "fuzzed"
validation = 12
epochs = 2
batch = 20
microbatch = 8
warmup = 0

[[layers]]
kind = "scale"
low = 0.0
span = 1.0

[[layers]]
kind = "conv2d"
filters = 4
kernel = [3, 3]
stride = 1
padding = 1
bias = true

[[layers]]
kind = "batchnorm"
epsilon = 1e-5

[[layers]]
kind = "relu"

[[layers]]
kind = "maxpool2d"
window = 2

[[layers]]
kind = "localresponsenorm"
size = 3

[[layers]]
kind = "flatten"

[[layers]]
kind = "dropout"
part = 0.2

[[layers]]
kind = "linear"
"""


@dataclass(frozen=True)
class Target:
    """A kind of file: what changes it, and the commands that read it."""

    name: str
    weight: float
    make: Callable[[Path, Rng], tuple[list[str], int]]


def changed(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return len(content)


def a_file(
    names: list[str], change: Callable[[bytes, Rng], bytes], commands: list[str]
) -> Callable[..., tuple[list[str], int]]:
    """A change of one of some files, and one of some commands."""

    def make(folder: Path, rng: Rng) -> tuple[list[str], int]:
        name = names[rng.integers(len(names))]
        path = folder / name
        size = changed(path, change(path.read_bytes(), rng))
        return commands[rng.integers(len(commands))].replace("FILE", name).split(), size

    return make


def a_shard(folder: Path, rng: Rng) -> tuple[list[str], int]:
    data = ["set", "mapped"][rng.integers(2)]
    mutate.shard(folder / data, f"train-0{rng.integers(2)}.h5", rng)
    commands = [f"data info {data}", f"train --recipe recipe.toml --data {data} --max-steps 1 --no-curves --out new"]
    return commands[rng.integers(2)].split(), 20_000


def an_odd_file(folder: Path, rng: Rng) -> tuple[list[str], int]:
    """A pipe, a device, a folder, a link to nowhere or to itself in place of a file."""
    names = ["run/metrics.jsonl", "run/log.txt", "run/config.toml", "run/times.json", "run/.lock", "set/train-00.h5",
             "set/manifest.json", "recipe.toml", "four.png", "net.safetensors", "plain.npz", "run/checkpoints/last.h5",
             "run/checkpoints/best.h5", "idx/train-images-idx3-ubyte", "csv/mnist_train.csv", "bench.json"]  # fmt: skip
    path = folder / names[rng.integers(len(names))]
    path.unlink()
    kind = rng.integers(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(["/dev/zero", "nowhere", path.name][kind - 2])
    return ODD[rng.integers(len(ODD))].split(), 0


ODD = [
    "train --resume --out run --max-steps 0 --no-curves", "report run", "plot run", "evaluate run", "data info set",
    "train --recipe recipe.toml --data set --max-steps 1 --no-curves --out new", "predict run four.png",
    "import net.safetensors --out net.h5", "data prepare plain.npz --out new", "data prepare idx --out new",
    "data prepare csv --out new", "forecast --fit bench.json",
]  # fmt: skip
NEW = "train --recipe recipe.toml --data set --max-steps 1 --no-curves --out new"
CHECKPOINTS = [
    "evaluate FILE", "predict FILE four.png", "export FILE --format npz --out x.npz", "train --resume --out run --no-curves",
    "export FILE --format onnx --out x.onnx", "export FILE --format safetensors --out x.st",
    "evaluate FILE --split validation --json", "train --resume FILE --out new --max-steps 1 --no-curves --data set",
]  # fmt: skip
TARGETS = [
    Target("checkpoint", 25, a_file(["run/checkpoints/step-00000006.h5"], mutate.checkpoint, CHECKPOINTS)),
    Target("pages", 1, a_file(["run/checkpoints/step-00000006.h5"], mutate.checkpoint, ["report run", "plot run --filters"])),
    Target("shard", 12, a_shard),
    Target("manifest", 10, a_file(["set/manifest.json", "mapped/manifest.json"], mutate.as_json, [
        "data info set", "data info mapped", NEW, NEW.replace("data set", "data mapped"), "evaluate run"])),
    Target("recipe", 12, a_file(["recipe.toml"], mutate.text, [NEW])),
    Target("run folder", 8, a_file(["run/metrics.jsonl"], mutate.lines_of_json, ["plot run", "report run"])),
    Target("run's other files", 5, a_file(["run/config.toml", "run/times.json", "run/log.txt", "run/.lock"], mutate.text, [
        "train --resume --out run --max-steps 0 --no-curves", "report run"])),
    Target("idx", 6, a_file([f"idx/{name}-ubyte" for name in ("train-images-idx3", "t10k-labels-idx1")], mutate.any_bytes, [
        "data prepare idx --out new"])),
    Target("gz", 5, a_file([f"idxgz/{name}-ubyte.gz" for name in ("train-images-idx3", "t10k-labels-idx1")], mutate.any_bytes, [
        "data prepare idxgz --out new"])),
    Target("csv", 6, a_file(["csv/mnist_train.csv", "csv/mnist_test.csv"], mutate.text, ["data prepare csv --out new"])),
    Target("npz", 10, a_file(["plain.npz", "packed.npz"], mutate.any_bytes, [
        "data prepare FILE --out new", "predict run FILE"])),
    Target("picture", 15, a_file(["four.png", "alpha.png", "four.jpg"], mutate.any_bytes, ["predict run FILE"])),
    Target("safetensors", 6, a_file(["net.safetensors"], mutate.any_bytes, ["import FILE --out net.h5"])),
    Target("measurements", 3, a_file(["bench.json"], mutate.as_json, ["forecast --fit FILE"])),
    Target("odd", 6, an_odd_file),
]  # fmt: skip
WEIGHTS = np.array([target.weight for target in TARGETS]) / sum(target.weight for target in TARGETS)

cli.world = Alone  # these commands need no MPI, whose start would take most of the time


if __name__ == "__main__":
    sys.exit(main())
