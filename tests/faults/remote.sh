#!/bin/sh
# Stands in for ssh: runs the words on this machine, under the name of the host.  A host called gone* is not there, one called
# silent* never answers.
host=$1
shift
case $host in
gone*) echo "ssh: Could not resolve hostname $host: Name or service not known" >&2; exit 255 ;;
silent*) exec sleep 600 ;;
esac
export CLUSTERGAUGE_HOST="$host"
exec sh -c "$*"
