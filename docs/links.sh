#!/usr/bin/env bash
# Measure a training step on two hosts by the rate of their link: with factors of large linear layers, and with sums only.
#
#   docs/links.sh [BLOCKS] [RATES]     blocks of 5 steps of each, in turns (40); rates as for tc (100mbit 1gbit 10gbit)
#
# Run this script in an activated environment with Open MPI, as root: it makes two network namespaces, each as a host.
set -euo pipefail
cd "$(dirname "$0")/.."
step=$(mktemp)
trap 'tests/namespaces.sh down; rm -f "$step"' EXIT
cat >"$step" <<'END'
import sys
from pathlib import Path
from unittest import mock

import dpcnn.parallel.start  # before NumPy: it sets the number of threads of the BLAS
import numpy as np
from dpcnn.config import read_recipe
from dpcnn.data.dataset import find_data, load
from dpcnn.evidence.measure import time_steps, warm_up
from dpcnn.parallel import exchange
from dpcnn.runs.console import Reporter
from dpcnn.runs.folder import RunFolder
from dpcnn.training.trainer import Trainer

comm, config = dpcnn.parallel.start.world(), read_recipe("simple-cnn")
samples = load(find_data(config.data), "train", comm)


def trainer():
    network = config.network(samples.manifest.image_shape, samples.manifest.classes)
    made = Trainer(comm, config, network, samples, RunFolder(Path("unused")), Reporter())
    warm_up(made)  # the first step plans the exchange
    return made


factors = trainer()
with mock.patch.object(exchange, "pays", lambda *counts: False):
    sums = trainer()
times = 200 * np.array([[time_steps(comm, one, 5) for one in (sums, factors)] for _ in range(int(sys.argv[1]))])
if comm.rank == 0:
    (before, now), ratios = np.median(times, axis=0), times[:, 1] / times[:, 0]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    quiet = np.quantile(times, 0.1, axis=0)
    print(f"| {sys.argv[2]} | {before:.1f} | {now:.1f} | {middle:.2f} | {low:.2f} to {high:.2f} | {quiet[1] / quiet[0]:.2f} |")
END
echo "| link | sums, ms per step | factors, ms per step | ratio, median | middle half | ratio of the 10 % quantiles |"
echo "| --- | --- | --- | --- | --- | --- |"
for rate in ${2:-100mbit 1gbit 10gbit}; do
  tests/namespaces.sh up 2 "$rate"
  PYTHONPATH=$PWD tests/namespaces.sh mpirun --host h1:1,h2:1 -n 2 -x PYTHONPATH python "$step" "${1:-40}" "$rate"
  tests/namespaces.sh down
done
