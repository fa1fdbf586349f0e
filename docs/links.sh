#!/usr/bin/env bash
# Measure a training step on two hosts by the rate of their link, with two versions of dpcnn in turns.
#
#   docs/links.sh OTHER [ROUNDS] [RATES]     OTHER: the folder of the version to compare with
#
# Run this script in an activated environment with Open MPI, as root: it makes two network namespaces, each as a host.
set -euo pipefail
cd "$(dirname "$0")/.."
other=$1 rounds=${2:-5} rates=${3:-100mbit 1gbit 10gbit}
times=$(mktemp -d)
trap 'tests/namespaces.sh down; rm -rf "$times"' EXIT
cat >"$times/step.py" <<'END'
import sys
import dpcnn.parallel.start
from dpcnn.config import read_recipe
from dpcnn.data.dataset import find_data, load
from dpcnn.evidence.measure import measure
comm, config = dpcnn.parallel.start.world(), read_recipe("simple-cnn")
samples = load(find_data(config.data), "train", comm)
network = config.network(samples.manifest.image_shape, samples.manifest.classes)
result = measure(comm, config, network, samples, int(sys.argv[1]))
if comm.rank == 0:
    print(1e3 * result["seconds_a_step"])
END
for rate in $rates; do
  tests/namespaces.sh up 2 "$rate"
  steps=$([ "$rate" = 100mbit ] && echo 10 || echo 60)
  for _ in $(seq "$rounds"); do
    for version in "$other" .; do
      (cd "$version" && PYTHONPATH=$PWD "$OLDPWD/tests/namespaces.sh" mpirun --host h1:1,h2:1 -n 2 -x PYTHONPATH \
        python "$times/step.py" "$steps") >>"$times/$rate-$([ "$version" = . ] && echo new || echo old)"
    done
  done
  tests/namespaces.sh down
done
python - "$times" "$other" $rates <<'END'
import sys
from pathlib import Path
from statistics import median

print("| link | before, ms per step | now, ms per step | ratio, median | range |\n| --- | --- | --- | --- | --- |")
for rate in sys.argv[3:]:
    old, new = ([float(time) for time in Path(sys.argv[1], f"{rate}-{name}").read_text().split()] for name in ("old", "new"))
    ratios = [now / before for now, before in zip(new, old, strict=True)]
    print(f"| {rate} | {median(old):.1f} | {median(new):.1f} | {median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |")
END
