"""Compare the training of several networks with PyTorch's: python docs/peers.py FOLDER [ROUNDS] [NETWORK ...]

It prints the rows of the table in docs/performance.md and draws docs/peers.png. FOLDER keeps the measurements, so that
a second call adds rows. All networks but those of the recipes have random images. Needs the extras torch and plot.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

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


def measure(folder: Path, network: str, rounds: int) -> None:
    """Compare one network, and keep the measurements."""
    side, batch, steps = ROWS[network]
    name = network.split(",")[0]
    data = ["--data", str(random_images(folder, side, batch)), "--validation", "20"] if side else []
    recipe = str(HERE / f"{name}.toml") if side else name
    words = ["--versus", "torch", "--recipe", recipe, "--batches", str(batch), "--steps", str(steps), *data]
    json_file = ["--rounds", str(rounds), "--json", str(folder / f"{network}.json")]
    subprocess.run([sys.executable, "-m", "dpcnn.bench", *words, *json_file], check=True)


def main(folder: Path, rounds: int, networks: list[str]) -> None:
    """Measure the networks, then show all that the folder has."""
    for network in networks:
        measure(folder, network, rounds)
    found = {name: json.loads(path.read_text()) for name in ROWS if (path := folder / f"{name}.json").exists()}
    figure = new_figure(width=7)
    axes = figure.subplots()
    for name, result in found.items():
        ((batch, ratio),) = result["ratios"].items()
        (low, high), by_round, middle = ratio["interval"], ratio["by_round"], ratio["median"]
        print(f"| {name.split(',')[0]} | {batch} | {len(by_round)} | {middle:.2f} | {low:.2f} to {high:.2f} |")
        axes.barh(name, middle, color="C0", xerr=[[middle - low], [high - middle]])
    axes.axvline(1, color="grey", linestyle=":")
    axes.set(xlabel="images per second, as a ratio to PyTorch DDP")
    axes.invert_yaxis()
    save(figure, Path("docs/peers"), "ratios")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 9, sys.argv[3:] or list(ROWS))
