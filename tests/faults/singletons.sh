#!/bin/sh
# Stands in for an MPI launcher that does not fit the MPI library: every rank becomes a job of its own.
ranks=$1
shift
i=0
while [ "$i" -lt "$ranks" ]; do
    env CLUSTERGAUGE_RANK="$i" "$@" &
    i=$((i + 1))
done
wait
