#!/usr/bin/env bash
# Measure the points of the cost model in performance.md, fit the model to some points and check it on the others.
# Run this script in an activated environment with Open MPI, as root: it makes network namespaces, each as a node. It takes
# 12 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
points=$(mktemp -d)
trap 'tests/namespaces.sh down; rm -rf "$points"' EXIT
mkdir "$points/fit" "$points/check"

step() { # arguments: fit or check, ranks, batch, microbatch
  mpirun -n "$2" python -m dpcnn.bench --steps 40 --model "$model" --batch "$3" --microbatch "$4" \
    --json "$points/$1/$model-$2-$3-$4.json" >/dev/null
}
for model in simple-cnn small-cnn mlp; do
  step fit 1 32 32
  step fit 1 64 64
  step fit 1 128 64
  step fit 2 128 64
  step fit 2 128 32
  step fit 2 256 128
  step fit 2 256 16
  step check 1 128 32
  step check 2 192 96
  step check 2 512 64
done
hosts() { # arguments: the file, without its end, and options
  tests/namespaces.sh mpirun --host "$(seq -s, -f h%g:1 "$nodes")" -n "$nodes" python -m dpcnn.bench --model "$model" \
    --json "$points/$1-$nodes-$model.json" "${@:2}" >/dev/null
}
for nodes in 2 3 4 6 8 16 32; do
  part=$([ "$nodes" -le 4 ] && echo fit || echo check)
  tests/namespaces.sh up "$nodes" 500mbit
  for model in simple-cnn small-cnn mlp; do
    hosts "$part/nodes" --exchange-only
    [ "$nodes" -gt 2 ] || hosts check/steps --steps 40 --batch 128 --microbatch 64
  done
  tests/namespaces.sh down
done
python -m dpcnn.forecast --fit "$points"/fit/*.json --check "$points"/check/*.json "$@"
