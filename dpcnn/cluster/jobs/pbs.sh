#!/usr/bin/env bash
#PBS -N dpcnn
#PBS -l select=@nodes@:ncpus=@ranks_a_node@:mpiprocs=@ranks_a_node@:mem=@memory_a_node@
#PBS -l walltime=@time@
#PBS -j oe
#PBS -r y
#
# Train on a PBS cluster, in as many jobs as the run needs:
#
#   qsub -v RUN=runs/mine @script@
#   qsub -l walltime=08:00:00 -v RUN=runs/mine,ARGUMENTS="--recipe accurate" @script@
#
# RUN is the run's folder; a run that has begun is resumed. Shortly before the job's time ends, the run stops with
# a checkpoint and this script queues itself again, until the run is complete. qdel stops the run with a checkpoint
# as well, but then the script does not queue itself again: submit it to resume.
set -uo pipefail
began=$(date +%s)
cd "${PBS_O_WORKDIR:-.}" || exit
@setup@

starter=${DPCNN_STARTER:-@starter@}
run=${RUN:-@run@}
arguments=${ARGUMENTS-@arguments@}
script=${DPCNN_SCRIPT:-@script@} # what to queue again

# PBS tells a job its time only through qstat
seconds=$(qstat -f "${PBS_JOBID:-}" 2>/dev/null | sed -n 's/^ *Resource_List.walltime = //p' |
  awk -F: '{ s = 0; for (i = 1; i <= NF; i++) s = 60 * s + $i; print s }')
[ -z "$seconds" ] || export DPCNN_JOB_END=$((began + seconds))

asked=
trap 'asked=TERM; kill -USR1 "$job" 2>/dev/null' TERM # qdel; mpirun passes the signal on to the ranks

ended() { tail -n 1 "$run/metrics.jsonl" 2>/dev/null | grep -q '"event": "end"'; }
last() { readlink "$run/checkpoints/last.h5"; }
before=$(last)

eval "words=($arguments)" # with the quotes of the shell: a value may contain blanks
# shellcheck disable=SC2086,SC2154 # words
$starter python -m dpcnn.train --resume auto --out "$run" "${words[@]}" </dev/null &
job=$!
wait $job
status=$?
while kill -0 $job 2>/dev/null; do # a signal has cut the wait short
  wait $job
  status=$?
done

if [ $status -eq 0 ] && ! ended; then
  status=137 # mpirun may call it a success when a node has died
fi
case $status in
  0 | 1 | 2 | 75) ;; # the run's own status: complete, failed, refused, stopped
  *)                 # killed, as when a node dies, but after a checkpoint
    if [ "$(last)" != "$before" ]; then status=75; fi ;;
esac
if [ $status -eq 75 ] && [ -z "$asked" ]; then
  echo "queued again: $run is not at its end"
  qsub -v RUN="$run",ARGUMENTS="$arguments" "$script"
fi
exit $status
