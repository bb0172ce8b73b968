#!/bin/sh
# What MPICH's launcher takes for ssh: drops its options, and goes by remote.sh.
while case "$1" in -*) true ;; *) false ;; esac; do shift; done
exec "$(dirname "$0")/remote.sh" "$@"
