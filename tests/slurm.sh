#!/usr/bin/env bash
# A Slurm of two nodes on this one machine, for tests: tests/slurm.sh up|down DIR
#
# Root only; needs slurmctld, slurmd, munged and srun (Debian: slurmctld slurmd slurm-client munge libpmix2).
# Nothing outside DIR is written, but for the name by which Slurm looks for the PMIx library. Afterwards
# SLURM_CONF=DIR/slurm.conf lets sbatch, srun and squeue find it. Each slurmd has a host name of its own.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where the daemons are, and not in every user's PATH
action=$1 dir=$2 nodes="node1 node2"

alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

until_true() { # a command, tried for 20 s
  for _ in $(seq 200); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.1
  done
  echo "gave up waiting for: $*" >&2
  return 1
}

configure() {
  mkdir -p "$dir/state" "$dir/munge"
  for node in $nodes; do mkdir -p "$dir/$node/spool" "$dir/$node/tmp"; done
  chmod 755 "$dir"
  chown munge:munge "$dir/munge"
  [ -s "$dir/munge/key" ] || head -c 128 /dev/urandom >"$dir/munge/key"
  chown munge:munge "$dir/munge/key"
  chmod 400 "$dir/munge/key"
  # this Slurm asks for a cgroup plugin, even where no cgroups are used
  echo "CgroupPlugin=autodetect" >"$dir/cgroup.conf"
  cat >"$dir/slurm.conf" <<END
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=16917
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/%n/slurmd.log
SlurmdParameters=config_overrides
TmpFS=$dir/%n/tmp
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=5
SlurmdTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname=node1 Port=17901 CPUs=4 RealMemory=4000
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname=node2 Port=17902 CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=2
END
}

start() {
  local plugins
  plugins=$(dirname "$(ls /usr/lib/*/pmix2/lib/libpmix.so.2)")
  [ -e "$plugins/libpmix.so" ] || ln -s libpmix.so.2 "$plugins/libpmix.so" # what srun --mpi=pmix opens
  alive "$dir/munge/pid" || setpriv --reuid=munge --regid=munge --clear-groups munged --force \
    --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
  until_true test -S "$dir/munge/socket"
  export SLURM_CONF="$dir/slurm.conf"
  alive "$dir/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
  until_true scontrol ping
  for node in $nodes; do
    alive "$dir/$node/slurmd.pid" || unshare --uts sh -c "hostname $node && exec slurmd -N $node -f $SLURM_CONF"
  done
  until_true sh -c 'test "$(sinfo -h -N -p main -o %t | grep -c idle)" = 2'
}

stop() {
  local number
  export SLURM_CONF="$dir/slurm.conf"
  scancel --user=root 2>/dev/null || true
  until_true sh -c '! squeue -h | grep -q .' || true
  for pid in "$dir"/node*/slurmd.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
    if alive "$pid"; then
      number=$(cat "$pid")
      kill -KILL "$number" # nothing of it is needed again
      until_true test ! -e "/proc/$number/exe" # gone, though its parent may not have heard of it
    fi
  done
}

case $action in
  up) configure && start ;;
  down) stop ;;
  *) echo "usage: $0 up|down DIR" >&2; exit 2 ;;
esac
