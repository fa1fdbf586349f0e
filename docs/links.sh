#!/usr/bin/env bash
# Measure a training step on two hosts by the rate of their link: with sums only, with factors of large linear layers,
# with factors if each host updates all parameters, and the last without overlap: the factors leave after all gradients.
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
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import dpcnn.parallel.start  # before NumPy: it sets the number of threads of the BLAS
import numpy as np
from dpcnn.data.dataset import find_data, load
from dpcnn.evidence.measure import time_steps, warm_up
from dpcnn.parallel import exact
from dpcnn.parallel.comm import SerialComm
from dpcnn.parallel.mpi import Communicator
from dpcnn.recipe import read_recipe
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


copies = trainer()  # the rules choose this
assert copies.team.exchange.copied
with mock.patch.object(exact, "copies_pay", lambda *counts: False):
    factors = trainer()
    with mock.patch.object(exact, "pays", lambda *counts: False):
        sums = trainer()
late = {name: getattr(SerialComm, name) for name in ("irecv", "isend", "wait")}


def timed(kind, overlap=True):
    with nullcontext() if overlap else mock.patch.multiple(Communicator, **late):
        return 200 * time_steps(comm, kind, 5)


times = np.array(
    [[*map(timed, (sums, factors, copies)), timed(copies, overlap=False)] for _ in range(int(sys.argv[1]))]
)
if comm.rank == 0:
    cells = [f"{time:.1f}" for time in np.median(times, axis=0)]
    for one, other in ((1, 0), (2, 0), (2, 3)):
        low, middle, high = np.quantile(times[:, one] / times[:, other], [0.25, 0.5, 0.75])
        cells += [f"{middle:.2f}", f"{low:.2f} to {high:.2f}"]
    print("|", " | ".join([sys.argv[2], *cells]), "|")
END
echo "| link | sums, ms per step | factors | factors and copies | without overlap | factors / sums | middle half |" \
  "with copies / sums | middle half | with / without overlap | middle half |"
echo "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
for rate in ${2:-100mbit 1gbit 10gbit}; do
  tests/namespaces.sh up 2 "$rate"
  PYTHONPATH=$PWD tests/namespaces.sh mpirun --host h1:1,h2:1 -n 2 -x PYTHONPATH python "$step" "${1:-40}" "$rate"
  tests/namespaces.sh down
done
