#!/usr/bin/env bash
# Compare the training on two hosts with PyTorch DDP's, one process and one core on each, by the rate of their link:
#
#   docs/wire.sh ROUNDS RATES NETWORK [OPTION ...]
#
# NETWORK is a recipe; the options are others of dpcnn bench. Each round runs dpcnn, and PyTorch in both memory layouts:
#
#   docs/wire.sh 5 "100mbit 1gbit 10gbit" simple-cnn --steps 30
#
# Run this script in an activated environment with Open MPI and PyTorch, as root: it makes two network namespaces, each as
# a host. Prints images per second, medians, and the median ratio of dpcnn to PyTorch's faster layout.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
rounds=$1 rates=$2 network=$3
options=(--recipe "$network" --batch 128 "${@:4}")
found=$(mktemp -d)
trap 'tests/namespaces.sh down; rm -rf "$found"' EXIT
export PYTHONPATH=$PWD OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=eth0
hosts=${DPCNN_HOSTS:-dpcnn}

ours() { # prints the images per second
  tests/namespaces.sh mpirun --host h1:1,h2:1 -n 2 -x PYTHONPATH python -m dpcnn.bench "${options[@]}" \
    --microbatch 64 --json "$found/ours" >/dev/null
  python -c 'import json, sys; print(json.load(open(sys.argv[1]))["images_per_second"])' "$found/ours"
}

theirs() { # argument: the layout; prints the images per second
  for host in 1 0; do
    ip netns exec "$hosts-h$((host + 1))" torchrun --nnodes 2 --node-rank $host --nproc-per-node 1 \
      --master-addr h1 --master-port 29500 -m dpcnn.evidence.peers.torch_ddp "${options[@]}" --layout "$1" \
      >"$found/theirs-$host" 2>"$found/errors-$host" &
  done
  wait
  python -c 'import json, sys; print(json.loads(open(sys.argv[1]).read().splitlines()[-1])["images_per_second"])' \
    "$found/theirs-0" || { cat "$found"/errors-* >&2; return 1; }
}

echo "| network | link | dpcnn | NCHW | channels-last | ratio, median | range |"
echo "| --- | --- | --- | --- | --- | --- | --- |"
for rate in $rates; do
  tests/namespaces.sh up 2 "$rate"
  for _ in $(seq "$rounds"); do
    for speed in ours "theirs nchw" "theirs channels-last"; do
      found_speed=$($speed) # a failure ends the script: a row without one of its columns would look like another
      echo -n "$found_speed "
    done
    echo
  done >"$found/rounds"
  tests/namespaces.sh down
  python - "$network" "$rate" "$found/rounds" <<'END'
import sys

import numpy as np

speeds = np.loadtxt(sys.argv[3], ndmin=2)
ratios = speeds[:, 0] / speeds[:, 1:].max(axis=1)
cells = [f"{speed:,.0f}" for speed in np.median(speeds, axis=0)]
print("|", " | ".join([*sys.argv[1:3], *cells, f"{np.median(ratios):.2f}", f"{ratios.min():.2f} to {ratios.max():.2f}"]), "|")
END
done
