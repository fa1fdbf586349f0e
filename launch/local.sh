#!/usr/bin/env bash
# Train on this machine:
#
#   launch/local.sh [-n RANKS] [options of dpcnn train]
#
# Ctrl-C stops the run at the next step, with a checkpoint; a second Ctrl-C ends the ranks at once. (Open MPI's
# mpirun kills its ranks a quarter of a second after a Ctrl-C, so it must not receive the first one.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ranks=4
if [ "${1:-}" = -n ]; then
  ranks=${2:?-n needs a number of ranks}
  shift 2
fi
. launch/environment.sh plot
survive=() # if a rank dies, the others continue
[ "${DPCNN_MPI:-openmpi}" != openmpi ] || survive=(--with-ft ulfm)

set -m # the ranks are in their own process group, which does not receive the Ctrl-C of the terminal
mpirun "${survive[@]}" -n "$ranks" python -m dpcnn.train "$@" </dev/null &
job=$!
asked=USR1
trap 'kill -$asked $job 2>/dev/null; asked=TERM' INT TERM
status=0
wait $job || status=$?
while kill -0 $job 2>/dev/null; do # a signal has interrupted the wait
  status=0
  wait $job || status=$?
done
exit $status
