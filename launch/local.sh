#!/usr/bin/env bash
# Train on this machine:
#
#   launch/local.sh [-n RANKS] [--restarts N] [options of dpcnn train]
#
# If a rank dies, the others continue (Open MPI), or the job ends. --restarts N: if the job ends like this, start it
# again, up to N times; it continues from the last checkpoint of the run.
#
# Ctrl-C stops the run at the next step, with a checkpoint; a second Ctrl-C ends the ranks at once. (Open MPI's
# mpirun kills its ranks a quarter of a second after a Ctrl-C, so it must not receive the first one.)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ranks=4 restarts=0
while [ "${1:-}" = -n ] || [ "${1:-}" = --restarts ]; do
  number=${2:?$1 needs a number}
  [ "$1" = -n ] && ranks=$number || restarts=$number
  shift 2
done
if ! [[ $restarts =~ ^[0-9]+$ ]]; then
  echo "--restarts: expected a number of starts, such as 3, not $restarts" >&2
  exit 2
fi
. launch/environment.sh plot
survive=(--with-ft ulfm) # if a rank dies, the others continue
[ "${DPCNN_MPI:-openmpi}" = openmpi ] || survive=()
case " $* " in *" --survive no "* | *" --survive=no "*) survive=() ;; esac

if [ "$restarts" -gt 0 ]; then # the run has a known folder, and is resumed if it is there
  run="" previous=""
  for word in "$@"; do
    case $word in --out=*) run=${word#--out=} ;; esac
    [ "$previous" = --out ] && run=$word
    previous=$word
  done
  run=${run:-runs/local-$(date +%Y%m%d-%H%M%S)}
  set -- --resume auto "$@" --out "$run"
fi

asked=
start() {
  mpirun "${survive[@]}" -n "$ranks" python -m dpcnn.train "$@" </dev/null &
  job=$!
  status=0
  wait $job || status=$?
  while kill -0 $job 2>/dev/null; do # a signal has interrupted the wait
    status=0
    wait $job || status=$?
  done
}

killed() { # all other states are the run's own: complete, failed, refused, stopped
  case $status in
    0) ! tail -n 1 "$run/metrics.jsonl" 2>/dev/null | grep -q '"event": "end"' ;; # mpirun may return 0 for dead ranks
    1 | 2 | 75) return 1 ;;
    *) [ -z "$asked" ] ;;
  esac
}

set -m # the ranks are in their own process group, which does not receive the Ctrl-C of the terminal
trap 'kill -${asked:-USR1} $job 2>/dev/null; asked=TERM' INT TERM
start "$@"
while [ "$restarts" -gt 0 ] && killed; do
  echo "the job was killed (status $status): $run continues from its last checkpoint; restarts left: $((--restarts))"
  start "$@"
done
exit $status
