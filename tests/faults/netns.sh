#!/bin/bash
# Hosts on one machine: network namespaces joined by a bridge, each with a name, an address and shared memory of its own.
# Processes and files are common to all.  Needs root, ip(8), unshare(1).  $LAB tells one set of hosts from another.
#   up HOST...              make the hosts, 10.78.x.1 and on; this machine is 10.78.x.254 (address says it)
#   exec HOST COMMAND...    run a command in one
#   ssh HOST WORDS...       the same as ssh would: the words are for a shell, standard input goes along
#   cut HOST, mend HOST     the link of one, at the switch: nothing comes through, and nobody is told
#   down                    end whatever runs in them, and remove them
set -e
LAB=${LAB:?which set of hosts}
D=/run/clustergauge-$LAB
NET=10.78.$(($(printf %s "$LAB" | cksum | cut -d' ' -f1) % 250))
port() { grep -n " $1\$" "$D/hosts" | cut -d: -f1; }
verb=$1
shift || true
case $verb in
up)
    mkdir -p "$D"
    ip netns add "$LAB-switch"
    ip -n "$LAB-switch" link add br0 type bridge
    ip -n "$LAB-switch" link set br0 up
    i=0
    for host; do
        i=$((i + 1))
        ip netns add "$LAB-$host"
        ip link add eth0 netns "$LAB-$host" type veth peer name "p$i" netns "$LAB-switch"
        ip -n "$LAB-switch" link set "p$i" master br0 up
        ip -n "$LAB-$host" link set lo up
        ip -n "$LAB-$host" addr add "$NET.$i/24" dev eth0
        ip -n "$LAB-$host" link set eth0 up
        echo "$NET.$i $host" >>"$D/hosts"
    done
    ip link add "$LAB-up" type veth peer name head netns "$LAB-switch"
    ip -n "$LAB-switch" link set head master br0 up
    ip addr add "$NET.254/24" dev "$LAB-up"
    ip link set "$LAB-up" up
    { echo "127.0.0.1 localhost"; cat "$D/hosts"; } >"$D/etc_hosts"
    ;;
exec)
    host=$1
    shift
    exec ip netns exec "$LAB-$host" unshare --uts --ipc --mount sh -c '
        hostname "$1"; mount --bind "$2" /etc/hosts; mount -t tmpfs shm /dev/shm; shift 2; exec "$@"' _ "$host" "$D/etc_hosts" "$@"
    ;;
ssh)
    host=$1
    shift
    exec "$0" exec "$host" sh -c "$*"
    ;;
address) echo "$NET.254" ;;
cut) ip -n "$LAB-switch" link set "p$(port "$1")" down ;;
mend) ip -n "$LAB-switch" link set "p$(port "$1")" up ;;
pids) ip netns pids "$LAB-$1" ;;
down)
    for n in $(ip netns list | grep -o "^$LAB-[^ ]*"); do
        ip netns pids "$n" 2>/dev/null | xargs -r kill -9
        ip netns del "$n"
    done
    ip link del "$LAB-up" 2>/dev/null || true
    rm -rf "$D"
    ;;
*) sed -n 2,9p "$0"; exit 2 ;;
esac
