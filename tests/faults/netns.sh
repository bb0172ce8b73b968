#!/bin/bash
# Hosts on one machine: network namespaces joined by a bridge, each with a name, an address and shared memory of its own.
# Processes and files are common to all.  Needs root, ip(8), unshare(1).  $LAB tells one set of hosts from another.
#   up HOST...              make the hosts, 10.78.x.1 and on; this machine is 10.78.x.254 (address says it).  With FAMILY=6 there
#                           is no IPv4 between them: fd78:x::1 and on, this machine is fd78:x::fe
#   exec HOST COMMAND...    run a command in one
#   ssh HOST WORDS...       the same as ssh would: the words are for a shell, standard input goes along
#   cut HOST, mend HOST     the link of one, at the switch: nothing comes through, and nobody is told
#   down                    end whatever runs in them, and remove them
set -e
LAB=${LAB:?which set of hosts}
D=/run/clustergauge-$LAB
number=$(($(printf %s "$LAB" | cksum | cut -d' ' -f1) % 250))
case ${FAMILY:-4} in
4) NET=10.78.$number. HEAD=254 BITS=24 ;;
6) NET=fd78:$number:: HEAD=fe BITS=64 ;;
esac
port() { grep -n " $1\$" "$D/hosts" | cut -d: -f1; }
named() { grep "^$1 " "$D/hosts" | cut -d' ' -f2 | grep . || echo "$1"; } # hosts may be called by their addresses
verb=$1
shift || true
case $verb in
up)
    mkdir -p "$D"
    ip netns add "$LAB-switch"
    ip -n "$LAB-switch" link add br0 type bridge
    ip -n "$LAB-switch" link set br0 up
    nodad=
    [ "$BITS" = 24 ] || nodad=nodad # usable at once
    i=0
    for host; do
        i=$((i + 1))
        ip netns add "$LAB-$host"
        ip link add eth0 netns "$LAB-$host" type veth peer name "p$i" netns "$LAB-switch"
        ip -n "$LAB-switch" link set "p$i" master br0 up
        ip -n "$LAB-$host" link set lo up
        ip -n "$LAB-$host" link set eth0 up
        ip -n "$LAB-$host" addr add "$NET$i/$BITS" dev eth0 $nodad
        echo "$NET$i $host" >>"$D/hosts"
    done
    ip link add "$LAB-up" type veth peer name head netns "$LAB-switch"
    ip -n "$LAB-switch" link set head master br0 up
    ip link set "$LAB-up" up
    ip addr add "$NET$HEAD/$BITS" dev "$LAB-up" $nodad
    { echo "127.0.0.1 localhost"; cat "$D/hosts"; } >"$D/etc_hosts"
    ;;
exec)
    host=$(named "$1")
    shift
    exec ip netns exec "$LAB-$host" unshare --uts --ipc --mount sh -c '
        hostname "$1"; mount --bind "$2" /etc/hosts; mount -t tmpfs shm /dev/shm; shift 2; exec "$@"' _ "$host" "$D/etc_hosts" "$@"
    ;;
ssh)
    host=$1
    shift
    exec "$0" exec "$host" sh -c "$*"
    ;;
address) echo "$NET$HEAD" ;;
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
*) sed -n 2,10p "$0"; exit 2 ;;
esac
