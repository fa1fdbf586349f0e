"""What is fuzzed: the kinds of files, what changes them, and the commands that read them."""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import mutate
import numpy as np
from PIL import Image

SIDE = 12

Rng = np.random.Generator
Case = tuple[list[str], int]
"""The words of a command, and the size of the file that it reads."""

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
kernel_size = [3, 3]
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
kernel_size = 2

[[layers]]
kind = "localresponsenorm"
size = 3

[[layers]]
kind = "flatten"

[[layers]]
kind = "dropout"
p = 0.2

[[layers]]
kind = "linear"
"""


def make_sources(base: Path) -> None:
    """Real files of every kind that the commands read but don't write."""
    base.mkdir()
    rng = np.random.default_rng(1)
    images = {split: rng.integers(0, 256, (n, SIDE, SIDE), np.uint8) for split, n in (("train", 60), ("test", 20))}
    labels = {split: (np.arange(len(images[split])) % 3).astype(np.uint8) for split in images}
    arrays = {f"x_{split}": images[split] for split in images} | {f"y_{split}": labels[split] for split in images}
    np.savez(base / "plain.npz", **arrays)
    np.savez_compressed(base / "packed.npz", **arrays)
    fine = {key: (a / 255).astype(np.float16) if key[0] == "x" else a for key, a in arrays.items()}
    np.savez(base / "fine.npz", **fine)
    for name, filters in (
        ("plain.h5", {}),
        ("packed.h5", {"compression": "gzip", "shuffle": True, "chunks": (7, 5, 12)}),
    ):
        with h5py.File(base / name, "w") as file:
            file.create_dataset("x", data=arrays["x_train"], **filters)
            file["g/y"] = arrays["y_train"]
    np.savez(base / "values.npz", **{key: a / 7 if key[0] == "y" else a for key, a in arrays.items()})
    np.savez(base / "several.npz", **{key: np.eye(3)[a] if key[0] == "y" else a for key, a in arrays.items()})
    for kind in ("idx", "idxgz", "csv", "npy"):
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
    for number in range(6):
        form = ("png", "jpg", "webp", "tif", "lzw.tif", "jpg.tif")[number]
        folder = base / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        options = {"compression": {"lzw.tif": "tiff_lzw", "jpg.tif": "jpeg"}.get(form)} if "tif" in form else {}
        Image.fromarray(np.repeat(images["train"][number][..., None], 3, axis=2)).save(folder / f"0.{form}", **options)
    (base / "list.csv").write_text("file,label\nphotos/a/0.png,x\nphotos/b/0.jpg,y\nphotos/a/0.webp,y\nfour.png,x\n")
    np.save(base / "npy" / "x_train.npy", images["train"])
    np.save(base / "npy" / "y_train.npy", np.array(list("xyz"))[labels["train"]])
    (base / "recipe.toml").write_text(RECIPE)


@dataclass(frozen=True)
class Target:
    """A kind of file, how often its turn comes, and what makes a case of it in a folder."""

    name: str
    weight: float
    make: Callable[[Path, Rng], Case]


def a_file(change: Callable[[bytes, Rng], bytes], files: list[str], commands: list[str]) -> Callable[[Path, Rng], Case]:
    """A change of one of some files, and one of some commands."""

    def make(folder: Path, rng: Rng) -> Case:
        name = files[rng.integers(len(files))]
        content = change((folder / name).read_bytes(), rng)
        (folder / name).write_bytes(content)
        return commands[rng.integers(len(commands))].replace("FILE", name).split(), len(content)

    return make


def a_shard(folder: Path, rng: Rng) -> Case:
    """A change of a shard."""
    data, train = [("set", NEW), ("mapped", MAPPED), ("valued", VALUED)][rng.integers(3)]
    mutate.shard(folder / data, f"train-0{rng.integers(2)}.h5", rng)
    return [f"data info {data}", train][rng.integers(2)].split(), 20_000


def an_odd_file(folder: Path, rng: Rng) -> Case:
    """A pipe, a folder, a link to a device, to nowhere or to itself in place of a file."""
    path = folder / ODD[rng.integers(len(ODD))]
    path.unlink()
    kind = rng.integers(5)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    else:
        path.symlink_to(["/dev/zero", "nowhere", path.name][kind - 2])
    return ALL[rng.integers(len(ALL))].split(), 0


PREPARE = "data prepare SOURCE --size 12x12 --colour grey --test 0.3 --out new"
ODD = """
run/metrics.jsonl run/log.txt run/config.toml run/times.json run/.lock run/checkpoints/last.h5 run/checkpoints/best.h5
set/train-00.h5 set/manifest.json recipe.toml four.png net.safetensors plain.npz bench.json
idx/train-images-idx3-ubyte csv/mnist_train.csv photos/a/0.png list.csv npy/x_train.npy
""".split()
NEW = "train --recipe recipe.toml --data set --max-steps 1 --no-curves --out new"
MAPPED = NEW.replace("data set", "data mapped")
FINE = NEW.replace("data set", "data fine")
VALUED = f"{NEW.replace('data set', 'data valued')} --loss huber"
RESUME = "train --resume --out run --max-steps 0 --no-curves"
ALL = [
    *(NEW, RESUME, "report run", "plot run", "evaluate run", "data info set", "predict run four.png"),
    *("import net.safetensors --out net.h5", "data prepare plain.npz --out new", "data prepare idx --out new"),
    *(PREPARE.replace("SOURCE", "photos"), PREPARE.replace("SOURCE", "list.csv"), "predict run photos"),
    *("data prepare csv --out new", "forecast --fit bench.json"),
]
CHECKPOINT = ["run/checkpoints/step-00000006.h5"]
OF_A_CHECKPOINT = [
    *("evaluate FILE", "evaluate FILE --split validation --json", "predict FILE four.png", RESUME),
    *(f"export FILE --format {kind} --out x" for kind in ("npz", "onnx", "safetensors")),
    "train --resume FILE --out new --max-steps 1 --no-curves --data set",
]
PHOTOS = [f"photos/{file}" for file in ("a/0.png", "b/0.jpg", "a/0.webp", "b/0.tif", "a/0.lzw.tif", "b/0.jpg.tif")]
REGRESSION = ["regression/checkpoints/step-00000006.h5", "regression/metrics.jsonl"]
IDX = ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
TARGETS = [
    Target("checkpoint", 25, a_file(mutate.checkpoint, CHECKPOINT, OF_A_CHECKPOINT)),
    Target("checkpoint's page", 1, a_file(mutate.checkpoint, CHECKPOINT, ["report run", "plot run --filters"])),
    Target("shard", 12, a_shard),
    Target("manifest", 5, a_file(mutate.as_json, ["set/manifest.json"], ["data info set", NEW, "evaluate run"])),
    Target("mapped manifest", 5, a_file(mutate.as_json, ["mapped/manifest.json"], ["data info mapped", MAPPED])),
    Target("manifest of values", 3, a_file(mutate.as_json, ["valued/manifest.json"], ["data info valued", VALUED])),
    Target("regression", 6, a_file(mutate.checkpoint, REGRESSION[:1], ["evaluate FILE", "predict FILE four.png"])),
    Target("its metrics", 3, a_file(mutate.lines_of_json, REGRESSION[1:], ["plot regression", "report regression"])),
    Target("recipe", 12, a_file(mutate.text, ["recipe.toml"], [NEW])),
    Target("metrics", 6, a_file(mutate.lines_of_json, ["run/metrics.jsonl"], ["plot run", "report run", RESUME])),
    Target("config", 4, a_file(mutate.text, ["run/config.toml"], [RESUME])),
    Target("times", 2, a_file(mutate.as_json, ["run/times.json"], ["report run"])),
    Target("log and lock", 2, a_file(mutate.any_bytes, ["run/log.txt", "run/.lock"], [RESUME])),
    Target("idx", 6, a_file(mutate.any_bytes, [f"idx/{name}" for name in IDX], ["data prepare idx --out new"])),
    Target("gz", 5, a_file(mutate.any_bytes, [f"idxgz/{name}.gz" for name in IDX], ["data prepare idxgz --out new"])),
    Target("csv", 6, a_file(mutate.text, ["csv/mnist_train.csv"], ["data prepare csv --out new"])),
    Target(
        "npz",
        10,
        a_file(mutate.any_bytes, ["plain.npz", "packed.npz"], ["data prepare FILE --out new", "predict run FILE"]),
    ),
    Target(
        "hdf5", 8, a_file(mutate.any_bytes, ["plain.h5", "packed.h5"], ["data prepare FILE:x,g/y --test 6 --out new"])
    ),
    Target("fine", 2, a_file(mutate.any_bytes, ["fine.npz"], ["data prepare FILE --out new"])),
    Target("fine manifest", 3, a_file(mutate.as_json, ["fine/manifest.json"], ["data info fine", FINE])),
    Target("values", 2, a_file(mutate.any_bytes, ["values.npz"], ["data prepare FILE --targets values --out new"])),
    Target(
        "several", 2, a_file(mutate.any_bytes, ["several.npz"], ["data prepare FILE --targets multilabel --out new"])
    ),
    Target("picture", 15, a_file(mutate.any_bytes, ["four.png", "alpha.png", "four.jpg"], ["predict run FILE"])),
    Target("photos", 15, a_file(mutate.any_bytes, PHOTOS, [PREPARE.replace("SOURCE", "photos"), "predict run photos"])),
    Target("list", 4, a_file(mutate.text, ["list.csv"], [PREPARE.replace("SOURCE", "list.csv")])),
    Target("npy", 5, a_file(mutate.any_bytes, ["npy/x_train.npy", "npy/y_train.npy"], ["data prepare npy --out new"])),
    Target("safetensors", 6, a_file(mutate.any_bytes, ["net.safetensors"], ["import FILE --out net.h5"])),
    Target("measurements", 3, a_file(mutate.as_json, ["bench.json"], ["forecast --fit FILE"])),
    Target("odd", 6, an_odd_file),
]
WEIGHTS = np.array([target.weight for target in TARGETS]) / sum(target.weight for target in TARGETS)
