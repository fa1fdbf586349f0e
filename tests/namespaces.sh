#!/usr/bin/env bash
# Several hosts on one machine: network namespaces joined by a bridge, with a limited rate. As root, with iproute2.
#
#   tests/namespaces.sh up N [RATE]      hosts h1 .. hN; RATE of each, either way, such as 1gbit (none: no limit)
#   tests/namespaces.sh mpirun ARGS...   Open MPI's mpirun, on h1; give it --host h1:1,h2:1
#   tests/namespaces.sh down
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # where tc is, and not in every user's PATH

prefix=${DPCNN_HOSTS:-dpcnn}
folder=/run/$prefix-hosts
subnet=10.83.${DPCNN_SUBNET:-0}

add_host() { # its number, the number of hosts, the rate
  local host=$prefix-h$1 switch=$prefix-switch
  ip netns add "$host"
  ip -n "$switch" link add "port$1" type veth peer name eth0 netns "$host"
  ip -n "$switch" link set "port$1" master bridge up
  ip -n "$host" addr add "$subnet.$1/24" dev eth0
  ip -n "$host" link set lo up
  ip -n "$host" link set eth0 up
  if [ "$3" != none ]; then
    # else a whole message waits in the host's one queue, and a reply of a few bytes behind it
    ip netns exec "$host" sysctl -qw net.ipv4.tcp_limit_output_bytes=65536
    tc -n "$host" qdisc add dev eth0 root tbf rate "$3" burst 256kb latency 400ms
    tc -n "$switch" qdisc add dev "port$1" root tbf rate "$3" burst 256kb latency 400ms
  fi
  mkdir -p "/etc/netns/$host" # ip netns exec puts this in place of /etc/hosts
  { echo 127.0.0.1 localhost; for other in $(seq "$2"); do echo "$subnet.$other h$other"; done; } \
    > "/etc/netns/$host/hosts"
}

case ${1:-} in
up)
  count=${2:-2} rate=${3:-none}
  mkdir -p "$folder"
  ip netns add "$prefix-switch"
  ip -n "$prefix-switch" link add bridge type bridge
  ip -n "$prefix-switch" link set bridge up
  for number in $(seq "$count"); do add_host "$number" "$count" "$rate"; done
  # mpirun calls this in place of ssh: agent [options] HOST COMMAND...
  cat > "$folder/agent" << END
#!/bin/sh
while [ "\${1#-}" != "\$1" ]; do shift; done
host=\$1; shift
exec ip netns exec $prefix-\$host unshare --uts sh -c 'hostname "\$0"; eval "\$1"' "\$host" "\$*"
END
  chmod +x "$folder/agent"
  ;;
mpirun)
  shift
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  exec ip netns exec "$prefix-h1" unshare --uts sh -c 'hostname h1; exec "$@"' - \
    mpirun --prtemca plm_ssh_agent "$folder/agent" --prtemca prte_if_include eth0 \
    --mca btl self,sm,tcp --mca btl_tcp_if_include eth0 --bind-to none "$@"
  ;;
down)
  for name in $(ip netns list | cut -d' ' -f1); do
    case $name in
      "$prefix"-h* | "$prefix-switch")
        ip netns pids "$name" | xargs -r kill || true
        ip netns del "$name"
        rm -rf "/etc/netns/$name"
        ;;
    esac
  done
  rm -rf "$folder"
  ;;
*)
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  exit 2
  ;;
esac
