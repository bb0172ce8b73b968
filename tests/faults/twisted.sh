#!/bin/sh
# Stands in for an MPI launcher whose environment names other ranks than MPI does: the first says that it is the last.
ranks=$1
shift
export ranks
exec "$MPIEXEC" -n "$ranks" sh -c 'CLUSTERGAUGE_RANK=$((ranks - 1 - PMI_RANK)) exec "$@"' sh "$@"
