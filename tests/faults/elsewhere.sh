#!/bin/sh
# Stands between an MPI launcher and its ranks: each believes to be on a host of its own, as where the launcher reaches others.
CLUSTERGAUGE_HOST=far$PMI_RANK exec "$@"
