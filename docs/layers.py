"""List the layers that are slower than in PyTorch: python docs/layers.py FOLDER [ROUNDS] [LEAST]

It measures each layer of the networks of docs/peers.py by ``dpcnn bench --layers``, and prints those whose ratio to
PyTorch is below LEAST (0.9). FOLDER keeps the measurements. Needs the extra torch.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from peers import ROWS, network_words

from dpcnn.base.text import markdown
from dpcnn.evidence.layers import layer_row, total


def main(folder: Path, rounds: int, least: float) -> None:
    """Measure the networks that the folder lacks, then list the layers, and the sums of each network."""
    folder.mkdir(parents=True, exist_ok=True)
    slow, sums = [], []
    for network in ROWS:
        path = folder / f"layers of {network}.json"
        if not path.exists():
            words = ["--layers", "--microbatch", str(ROWS[network][1]), "--rounds", str(rounds), "--json", str(path)]
            subprocess.run([sys.executable, "-m", "dpcnn.bench", *words, *network_words(folder, network)], check=True)
        layers = json.loads(path.read_text())["layers"]
        sums.append((network, *layer_row(total(layers))[2:]))
        slow += [(network, *layer_row(layer)) for layer in layers if median(layer.get("ratios", [1])) < least]
    times = (
        "forward",
        "backward",
        "GFLOP/s",
        "roofline",
        "of the roofline",
        "PyTorch forward",
        "PyTorch backward",
        "ratio",
    )
    print(markdown(("network", "layer", "output", *times), slow), "\n")
    print(markdown(("network", *times), sums))


if __name__ == "__main__":
    arguments = sys.argv[2:]
    main(Path(sys.argv[1]), int(arguments[0]) if arguments else 5, float(arguments[1]) if len(arguments) > 1 else 0.9)
