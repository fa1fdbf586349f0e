#!/usr/bin/env bash
# Train on this machine:
#
#   launch/local.sh [-n RANKS] [arguments of dpcnn.train]
#
# Ctrl-C asks the ranks for a checkpoint at the next step; a second one ends them at once. (Open MPI's
# mpirun itself kills its ranks a quarter of a second after a Ctrl-C, so it must not see the first.)
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

set -m # the ranks in a process group of their own, which the terminal's Ctrl-C doesn't reach
mpirun "${survive[@]}" -n "$ranks" python -m dpcnn.train "$@" </dev/null &
job=$!
asked=USR1
trap 'kill -$asked $job 2>/dev/null; asked=TERM' INT TERM
status=0
wait $job || status=$?
while kill -0 $job 2>/dev/null; do # the wait was cut short by the signal
  status=0
  wait $job || status=$?
done
exit $status
