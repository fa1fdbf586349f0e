"""Compare the training of several networks with PyTorch's: python docs/peers.py FOLDER [ROUNDS] [NETWORK ...]

It prints the figures of the tables in docs/performance.md and draws docs/peers.png. FOLDER keeps the measurements: a
second call measures only the networks that it lacks. The first five rows have the images of their recipes, the others
random images. Needs the extras torch and plot.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dpcnn.base.text import markdown
from dpcnn.reporting.figures import new_figure, save

HERE, SEVERAL = Path(__file__).parent / "peers", 12
ROWS = {  # network: side of the random images, batch per rank, steps of a measurement
    "simple-cnn": (0, 64, 50),
    "simple-cnn, 128": (0, 128, 25),
    "lenet5": (0, 64, 100),
    "mlp-adam": (0, 64, 100),
    "resnet20": (0, 64, 8),
    "vgg": (32, 64, 12),
    "vgg-bn": (32, 64, 8),
    "five": (64, 64, 6),
    "alexnet": (96, 64, 6),
    "stem": (224, 16, 5),
    "resnet18": (64, 16, 6),
    "vgg11": (32, 32, 4),
    "mobilenet": (64, 32, 6),
    "resnext": (32, 64, 6),
    "large": (64, 32, 4),
    "convnext": (64, 32, 6),
}


def random_images(folder: Path, side: int, batch: int) -> Path:
    """A prepared data set of colour images in ten classes, several batches of two ranks."""
    out, rng, counts = folder / f"images{side}", np.random.default_rng(0), {"train": SEVERAL * 2 * batch, "test": 20}
    if not out.exists():
        arrays = {f"x_{part}": rng.integers(0, 256, (n, side, side, 3), np.uint8) for part, n in counts.items()}
        labels = {f"y_{part}": np.arange(n) % 10 for part, n in counts.items()}
        np.savez(folder / "images.npz", **arrays, **labels)
        words = ["prepare", str(folder / "images.npz"), "--out", str(out), "--contiguous"]
        subprocess.run([sys.executable, "-m", "dpcnn.data", *words], check=True, stdout=subprocess.DEVNULL)
    return out


def network_words(folder: Path, network: str) -> list[str]:
    """The options of ``dpcnn bench`` for a network and its images."""
    side, batch, _ = ROWS[network]
    name = network.split(",")[0]
    recipe = HERE / f"{name}.toml"
    if not side:
        return ["--recipe", name]
    return [
        "--recipe",
        str(recipe) if recipe.exists() else name,
        "--data",
        str(random_images(folder, side, batch)),
        "--validation",
        "20",
    ]


def measure(folder: Path, network: str, rounds: int) -> None:
    """Compare one network, and keep the measurements."""
    _, batch, steps = ROWS[network]
    words = ["--versus", "torch", "--batches", str(batch), "--steps", str(steps), "--rounds", str(rounds)]
    json_file = ["--json", str(folder / f"{network}.json")]
    subprocess.run(
        [sys.executable, "-m", "dpcnn.bench", *words, *network_words(folder, network), *json_file], check=True
    )


def row(network: str, result: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a network."""
    ((batch, rounds),), ratio = result["rounds"].items(), next(iter(result["ratios"].values()))
    (low, high), by_round = ratio["interval"], ratio["by_round"]
    speeds = (f"{median(speeds[name] for speeds in rounds):,.0f}" for name in ("dpcnn", "NCHW", "channels-last"))
    ratios = f"{ratio['median']:.2f}", f"{low:.2f} to {high:.2f}", f"{min(by_round):.2f} to {max(by_round):.2f}"
    return network.split(",")[0], batch, *speeds, *ratios, f"{median(speeds['limit'] for speeds in rounds):.0%}"


def main(folder: Path, rounds: int, networks: list[str]) -> None:
    """Measure the networks that the folder lacks, then show all that it has."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.json" for name in ROWS}
    for network in networks:
        if not files[network].exists():
            measure(folder, network, rounds)
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    header = ("network", "batch per rank", "dpcnn", "NCHW", "channels-last", "ratio, median", "95 % interval", "range")
    print(markdown((*header, "of the sgemm limit"), [row(name, result) for name, result in found.items()]))
    figure = new_figure(width=7)
    axes = figure.subplots()
    for name, result in found.items():
        (ratio,) = result["ratios"].values()
        (low, high), middle = ratio["interval"], ratio["median"]
        axes.barh(name, middle, color="C0", xerr=[[middle - low], [high - middle]])
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(xlabel="images per second, as a ratio to PyTorch DDP")
    axes.invert_yaxis()
    save(figure, HERE.parent / "peers", "ratios")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9, sys.argv[3:] or list(ROWS))
