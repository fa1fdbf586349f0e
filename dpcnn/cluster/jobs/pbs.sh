#!/usr/bin/env bash
#PBS -N dpcnn
#PBS -l select=@nodes@:ncpus=@ranks_per_node@:mpiprocs=@ranks_per_node@:mem=@memory_per_node@
#PBS -l walltime=@time@
#PBS -j oe
#PBS -r y
#
# Train on a PBS cluster, in one job or in several consecutive jobs:
#
#   qsub -v RUN=runs/mine @script@
#   qsub -l walltime=08:00:00 -v RUN=runs/mine,ARGUMENTS="--recipe accurate" @script@
#
# RUN is the run's folder; if the run exists, it is resumed. Shortly before the time limit of the job, the run stops with
# a checkpoint and this script submits itself again, until the run is complete. qdel also stops the run with a checkpoint,
# but then the script does not submit itself again: submit it to resume the run.
set -uo pipefail
began=$(date +%s)
cd "${PBS_O_WORKDIR:-.}" || exit
@setup@

starter=${DPCNN_STARTER:-@starter@}
if [ -z "$starter" ]; then # with Open MPI 5, the other ranks continue if a rank dies
  if mpirun --version 2>/dev/null | grep -q '(Open MPI) 5'; then starter="mpirun --with-ft ulfm"; else starter="mpirun"; fi
fi
run=${RUN:-@run@}
arguments=${ARGUMENTS-@arguments@}
script=${DPCNN_SCRIPT:-@script@} # the script to submit again

# The time limit of a PBS job is known only through qstat
seconds=$(qstat -f "${PBS_JOBID:-}" 2>/dev/null | sed -n 's/^ *Resource_List.walltime = //p' |
  awk -F: '{ s = 0; for (i = 1; i <= NF; i++) s = 60 * s + $i; print s }')
[ -z "$seconds" ] || export DPCNN_JOB_END=$((began + seconds))

asked=
trap 'asked=TERM; kill -USR1 "$job" 2>/dev/null' TERM # from qdel; mpirun forwards the signal to the ranks

ended() { tail -n 1 "$run/metrics.jsonl" 2>/dev/null | grep -q '"event": "end"'; }
last() { readlink "$run/checkpoints/last.h5"; }
before=$(last)

eval "words=($arguments)" # quoted for the shell: a value may contain blanks
# shellcheck disable=SC2086,SC2154 # words
$starter python -m dpcnn.train --resume auto --out "$run" "${words[@]}" </dev/null &
job=$!
wait $job
status=$?
while kill -0 $job 2>/dev/null; do # a signal has interrupted the wait
  wait $job
  status=$?
done

if [ $status -eq 0 ] && ! ended; then
  status=137 # mpirun may return 0 although a node has failed
fi
case $status in
  0 | 1 | 2 | 75) ;; # the run's own status: complete, failed, refused, stopped
  *)                 # killed, for example with its node: continue if there is a new checkpoint
    if [ "$(last)" != "$before" ]; then status=75; fi ;;
esac
if [ $status -eq 75 ] && [ -z "$asked" ]; then
  echo "queued again: $run is not complete"
  qsub -v RUN="$run",ARGUMENTS="$arguments" "$script"
fi
exit $status
