"""Units of a fleet as rows: there and back, joined in any parts, of several runs the newest; grouped as dictionaries group."""

from __future__ import annotations

import itertools
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, strategies as st

from clustergauge import blame, columns, confirm, peers, reduce
from clustergauge.columns import Unit, Units, Work
from clustergauge.launches import TAIL_SAMPLES, _middles_and_tails
from clustergauge.loading import LoadedRun
from clustergauge.model import Gpu, Workload
from tests import made
from tests.test_blame import judge, node, states
from tests.test_verdicts import loaded

NUMBERS = st.one_of(st.just(math.nan), st.floats(-20, 20))
NAMES = st.sampled_from(["a", "b", "ü", ""])


@st.composite
def unit(draw: st.DrawFn) -> Unit:
    work = Work(Workload(flops=draw(st.integers(0, 2))), draw(st.integers(0, 2)))
    began = draw(st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]))
    names = (draw(NAMES), draw(st.sampled_from(["cpu:0", "cuda:0", "cuda:1"])), draw(st.sampled_from(["m1", "m2"])), began, work)
    values = [draw(NUMBERS) for _ in range(4)]
    return Unit(*names, *values, draw(NAMES), draw(NAMES), draw(st.integers(0, 3)), draw(st.booleans()))


def rows_of(units: Units) -> list[Unit]:
    return [units.unit(n) for n in range(len(units.table()))]


def same(a: list[Unit], b: list[Unit]) -> bool:
    return list(map(repr, a)) == list(map(repr, b))  # not a number is not equal to itself


@given(st.lists(unit(), max_size=8))
def test_what_went_in_comes_out(units):
    table = columns.of(units)
    assert same(rows_of(table), units)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(table), type=Units) == table


def plainly(units: list[Unit]) -> list[Unit]:
    """What `columns.joined` says, in loops and dictionaries."""
    last: dict[tuple[object, ...], int] = {}
    for n, u in sorted(enumerate(units), key=lambda item: (item[1].run, item[0])):
        last[u.case, u.device, u.machine, u.confirms] = n
    found: list[Unit] = []
    for n, u in enumerate(units):
        if last[u.case, u.device, u.machine, u.confirms] != n:
            continue
        fresh = last.get((u.case, u.device, u.machine, True))
        if not u.confirms and fresh is not None:
            other = units[fresh]
            if other.work == u.work and other.run >= u.run and not math.isnan(u.y) and not math.isnan(other.fresh):
                digest = u.digest if other.digest in ("", u.digest) else "-"
                u = u._replace(fresh=other.fresh, fresh_tail=other.fresh_tail, digest=digest)
        found.append(u)
    return found


@given(st.lists(unit(), max_size=14), st.lists(st.integers(0, 14), max_size=3))
def test_joined_in_any_parts_the_newest_run_counts(units, cuts):
    ends = sorted({0, len(units), *(min(c, len(units)) for c in cuts)})
    parts = [columns.of(units[a:b]) for a, b in itertools.pairwise(ends)]
    whole, outdone = columns.joined(parts)
    assert same(rows_of(columns.confirmed(whole)), plainly(units))
    assert len(outdone) == len(units) - len(rows_of(whole))
    nested, _ = columns.joined([columns.joined(parts[:1])[0], columns.joined(parts[1:])[0]])
    assert nested == whole


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_groups_are_those_of_a_dictionary(pairs):
    plain: dict[tuple[int, int], list[int]] = {}
    for n, pair in enumerate(pairs):
        plain.setdefault(pair, []).append(n)
    table = np.asarray(pairs, np.int64).reshape(-1, 2)
    assert [group.tolist() for group in columns.grouped(table[:, 0], table[:, 1])] == list(plain.values())


# -- a machine that several runs measured


def again(number: int, time: float, began: str, **more):
    run = node(number, time, **more)
    return type(run)(msgspec.structs.replace(run.run, started=began), run.machines, run.records, run.path, [])


EARLY, LATE = "2026-11-22T06:30:00Z", "2026-11-24T06:30:00Z"


@pytest.mark.parametrize(("began", "state"), [(EARLY, {}), (LATE, {"node-05": "suspect"})])
def test_of_two_runs_of_a_machine_the_newest_counts_whatever_their_order(began, state):
    others = [node(n) for n in range(10)]
    for runs in ([*others, again(5, 1.2, began)], [again(5, 1.2, began), *others]):
        fleet = judge(*runs)
        assert states(fleet) == state
        assert fleet.cases[0].devices == 10  # no machine is its own peer


def test_what_it_was_not_measured_in_again_stays_from_the_run_before():
    other = [again(n, 1.2 if n == 5 else 1.0, EARLY, shape="1") for n in range(10)]
    fleet = judge(*(node(n, shape="2") for n in range(10)), *other)
    assert states(fleet) == {"node-05": "suspect"}
    assert [c.case for c in fleet.cases] == ["matmul/shape=2", "matmul/shape=1"]


def test_a_repaired_machine_is_good_and_what_was_wrong_is_told():
    broken = loaded([made.failed("wrong", "element 3", machine_id="m05")], node(5).machines["m05"], run_id="old")
    broken = type(broken)(
        msgspec.structs.replace(broken.run, started=EARLY), broken.machines, broken.records, broken.path, broken.notes
    )
    fleet = judge(broken, *(node(n) for n in range(10)))
    assert states(fleet) == {}
    assert fleet.notes == ["node-05: in a run before its newest, matmul on cpu:0: wrong: element 3"]


def test_what_an_interrupted_run_left_out_is_no_debt_once_it_was_measured():
    cut = again(5, 1.0, EARLY)
    more = made.planned(made.record(shape="9"))
    cut = type(cut)(msgspec.structs.replace(cut.run, planned=[*cut.run.planned, more]), cut.machines, cut.records, cut.path, [])
    others = [node(n) for n in range(10)]
    assert states(judge(cut, *others)) == {"node-05": "unmeasured"}
    assert states(judge(cut, *others, node(5, shape="9"))) == {}


def test_launches_that_confirmed_an_older_run_say_nothing_of_a_newer_one():
    records = [made.record(samples=[1.0] * 20, launch=n, confirms=True, machine_id="m05") for n in range(2)]
    fresh = loaded(records, node(5).machines["m05"], run_id="again")
    others = [node(n) for n in range(10) if n != 5]
    assert states(judge(*others, again(5, 1.2, EARLY), fresh)) == {}
    assert states(judge(*others, again(5, 1.2, LATE), fresh)) == {"node-05": "suspect"}


def test_a_suspect_is_measured_again_as_the_run_had_it_that_measured_its_case():
    slow = again(5, 1.2, EARLY, shape="1")
    slow = type(slow)(slow.run, slow.machines, slow.records, slow.path / "early", [])
    others = [again(n, 1.0, EARLY, shape="1") for n in range(10) if n != 5]
    part = reduce.joined([reduce.part_of(run) for run in (slow, *others, node(5, shape="2"))])
    suspects = confirm.suspects(blame.judge(part))
    assert list(confirm.by_run(suspects, part)) == [str(slow.path)]


# -- the plain way


TIMES, DIGESTS = st.sampled_from([1.0, 1.0005, 0.9995, 1.5]), st.sampled_from(["", "x", "x", "y"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), TIMES, DIGESTS), max_size=60))
def test_a_fleet_is_judged_as_case_by_case(found):
    """Every device of a case and its time, as rows of a fleet and as one plain group."""
    units = [
        Unit(f"c{case}", f"cpu:{device}", f"m{n}", "t", Work(ranks=1), math.log(time), digest=digest)
        for n, (case, device, time, digest) in enumerate(found)
    ]
    machines = {u.machine: made.machine(machine_id=u.machine, host=u.machine) for u in units}
    fleet = blame.judge(reduce.Part(machines, columns.of(units), {}, [], {}))
    told = {(n.host, r.kind, r.case, r.ratio) for n in fleet.nodes for r in n.reasons}
    plain: set[tuple[object, ...]] = set()
    for case in dict.fromkeys(u.case for u in units):
        own = [u for u in units if u.case == case]
        nan = np.full(len(own), math.nan)
        slots = np.asarray([int(u.device[-1]) for u in own])
        group = peers.Group(np.asarray([u.y for u in own]), nan, nan, nan, np.full(len(own), -1), slots)
        plain |= {(own[s.row].machine, s.kind, case, s.ratio) for s in peers.judge(group).slow}
        plain |= {(own[n].machine, "corrupting", case, None) for n in peers.minority([u.digest for u in own])}
    assert told == plain


@given(st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=25), min_size=1, max_size=8))
def test_a_unit_has_the_median_and_the_tail_of_its_samples_however_many_its_neighbours_have(samples):
    records = [made.record(n=n, samples=taken) for n, taken in enumerate(samples)]
    middles, tails = _middles_and_tails(records)
    for taken, middle, tail in zip(samples, middles, tails, strict=True):
        assert middle == pytest.approx(math.log(np.quantile(taken, 0.5)))
        if len(taken) < TAIL_SAMPLES:
            assert math.isnan(tail)
        else:
            assert tail == pytest.approx(math.log(np.quantile(taken, 0.9)))


def with_gpus(number: int, uuids: str, slow: str = "", shapes: str = "12", began: str = "2026-11-23T06:30:00Z"):
    """A run of one machine with a GPU of each of these UUIDs, of one letter; those in ``slow`` are slow in all cases."""
    gpus = [Gpu(index=index, name="NVIDIA A100-SXM4-80GB", uuid=uuid) for index, uuid in enumerate(uuids)]
    machine = made.machine(machine_id=f"m{number:02}", host=f"node-{number:02}", gpus=gpus)
    records = [
        made.record(device=f"cuda:{gpu.index}", machine_id=machine.machine_id, samples=[seconds] * 20, shape=shape)
        for gpu, seconds in ((gpu, 1.3 if gpu.uuid in slow else 1.0) for gpu in gpus)
        for shape in shapes
    ]
    run = loaded(records, machine, run_id=f"r{number}")
    return LoadedRun(msgspec.structs.replace(run.run, started=began), run.machines, run.records, run.path, [])


@pytest.mark.parametrize("turned", [False, True])
def test_what_a_gpu_did_that_was_replaced_does_not_count_for_the_one_in_its_place(turned):
    """In one case alone the new one was measured: of the other nothing is known yet."""
    others = [with_gpus(number, "ab") for number in range(8)]
    before = with_gpus(9, "cd", slow="d")
    later = with_gpus(9, "ce", shapes="1", began="2026-11-24T06:30:00Z")
    fleet = judge(*(sorted([*others, before, later], key=lambda run: run.run.started, reverse=turned)))
    assert states(fleet) == {}
    assert fleet.notes == ["node-09: cuda:1 is another GPU than before: what that one did is left aside"]
    assert {(c.case, c.devices) for c in fleet.cases} == {("matmul/shape=1", 18), ("matmul/shape=2", 17)}
    same = with_gpus(9, "cd", shapes="1", began="2026-11-24T06:30:00Z")
    fleet = judge(*others, before, same)
    assert (states(fleet), fleet.notes) == ({"node-09": "suspect"}, [])


def test_machines_of_one_name_are_told_for_neither_outdoes_the_other():
    fleet = judge(*(node(number) for number in range(8)), node(8, machine=made.machine(machine_id="m08", host="node-05")))
    words = "several machines of one name: each is judged by itself; leave out the runs of one that is gone: node-05 (2)"
    assert fleet.notes == [words]
