"""Cases of the probe ``planted`` run for real: supervisor, workers, ranks."""

from __future__ import annotations

from contextlib import contextmanager

from clustergauge.model import Place
from clustergauge.plan import load_probes
from clustergauge.supervise import Patience, Supervisor
from tests import made
from tests.faults.planted import OPERATIONS

MODULE = "tests.faults.planted"
PROBE = load_probes([MODULE])["planted"]
COLLECTIVES = OPERATIONS[:8]
ONE_FORM = ("broadcast",)
"""Operations without a choice of place."""


@contextmanager
def supervised():
    owner = Supervisor(patience=Patience(start_s=60, peer_grace_s=1))
    owner.start()
    try:
        yield owner
    finally:
        owner.close()


def run(supervisor, operation, backend, ranks=2, budget_s=0.02, **params):
    """What came of one case."""
    wanted = {"dtype": "fp32", "size": 4096, "place": "", "fault": "none"} | params
    (case,) = PROBE.cases(operation=[operation], backend=[backend], **{axis: [value] for axis, value in wanted.items()})
    world = "mpi" if backend == "mpi" else "torch"
    fields = {"case": case.id, "probe": case.probe, "module": case.module, "params": dict(case.params), "device": "cpu:0"}
    planned = made.planned(made.record(), **fields, ranks=ranks, world=world, budget_s=budget_s, timeout_s=30.0)
    return supervisor.run(planned, seed=1, llc_bytes=1 << 20).outcome


def record(outcome, ranks):
    """A record of an outcome, with a host for each rank."""
    assert outcome.status == "ok", outcome
    places = [Place(rank=rank, host=f"node-{rank}") for rank in range(ranks)]
    return made.record(
        work=outcome.workload, measurement=outcome.measurement, settings=outcome.settings, ranks=ranks, placement=places
    )
