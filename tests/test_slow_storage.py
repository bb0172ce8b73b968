"""Slow nodes of a storage case over many: planted seconds of ranks, and what a run makes of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from clustergauge import blame, exits, groups, reduce, slow_storage
from clustergauge.loading import LoadedRun
from clustergauge.model import Measurement, Place, Series, Workload
from tests import made

NODES = 8
RANKS = 4


def over(times, nodes=NODES, ranks=RANKS, device="cpu:nodes", **more):
    """A case of ``ranks`` on each node; ``times``: for each sample the seconds of each node, one rank of which takes double."""
    places = [Place(rank=n * ranks + r, host=f"node-{n}") for n in range(nodes) for r in range(ranks)]
    flat = [seconds * (2 if rank == 0 else 1) for sample in times for seconds in sample for rank in range(ranks)]
    fields = {
        "device": device,
        "ranks": nodes * ranks,
        "placement": places,
        "work": Workload(bytes_read=1 << 30, bound="storage"),
        "settings": {"fs_type": "lustre"},
        "measurement": Measurement(
            clock="wall",
            cache="none",
            samples_s=[2 * max(sample) for sample in times],
            series={"rank_seconds": Series(unit="s", values=flat)},
        ),
    }
    return made.record("parallel", **fields | more)


def sample(slow=1.0, at=3, nodes=NODES):
    return [slow if n == at else 1 + 0.05 * (n % 3) for n in range(nodes)]


def test_a_node_that_is_slow_every_time_is_named_and_few_samples_suffice():
    (slow,) = slow_storage.nodes(over([sample(2.0), sample(2.2), sample(3.0)]))
    assert (slow.host, slow.own_s, slow.samples) == ("node-3", 2.2, 3)
    assert slow.speed == pytest.approx(1.05 / 2.2)
    assert str(slow) == "its ranks take 2.20 s where nodes usually take 1.05 s, in every one of 3 samples"


@pytest.mark.parametrize(
    "record",
    [
        over([sample()] * 3),  # one rank of each node is late: what is usual
        over([sample(1.5)] * 9),
        over([sample(2.0), sample(2.0), sample(1.4)]),
        over([sample(2.0)] * 2),
        over([sample(9.0, nodes=3, at=1)] * 3, nodes=3),
        over([sample(2.0), sample(2.0, at=4), sample(2.0)]),
        over([sample(9.0)] * 3, placement=[]),
        made.record("all_reduce", device="cpu:nodes", ranks=32),
    ],
)
def test_what_is_no_habit_of_one_node_among_many_is_not(record):
    assert list(slow_storage.nodes(record)) == []


def test_it_is_a_suspect_and_neither_bad_nor_kept_out():
    machines = {f"m{n}": made.machine(machine_id=f"m{n}", host=f"node-{n}", node=f"node-{n}") for n in range(NODES)}
    record = over([sample(2.0)] * 3, machine_id="m0")
    where = {"hosts": "node-[0-7]", "nodes": NODES}
    run = msgspec.structs.replace(made.run([]), planned=[made.planned(record, **where)])
    fleet = blame.judge(reduce.part_of(LoadedRun(run, machines, [record], Path("x"), [])))
    assert {node.name: node.state for node in fleet.nodes} == {f"node-{n}": "suspect" if n == 3 else "good" for n in range(NODES)}
    (reason,) = fleet.nodes[0].reasons
    assert (reason.kind, reason.case, reason.device, reason.confirmed) == ("slow", record.case, "cpu:nodes", False)
    assert reason.detail.startswith("its ranks take 2.00 s where nodes usually take")
    assert blame.exit_code(fleet) == exits.UNKNOWN
    assert groups.unfit([record], {machine.host: machine for machine in machines.values()}) == {}
