"""Records of pair sweeps: endpoints by name, what cannot be believed is left out, and verdicts."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from clustergauge import accept, exits, retry, sweeps, topology, verdicts, warnings
from clustergauge.model import Link, Machine, PairFindings, Place, Series, Suspect
from tests import made
from tests.swept import flat, series_of, swept

TOPOLOGY = topology.parse(
    "\n".join(f"[[leaf]]\nname = 'leaf-{i}'\nhosts = ['node-[00{4 * i}-{4 * i + 3:03d}]']" for i in range(2))
    + "\n[[leaf]]\nname = 'leaf-2'\nhosts = ['node-[008-011]']",
    "t.toml",
)


def one(*records, leaves=None) -> PairFindings:
    (found,) = sweeps.findings(records, leaves)
    return found


def test_a_slow_sender_is_found_named_and_fails():
    found = one(swept(flat(4, sends_2=0.61)))
    (suspect,) = found.suspects
    assert (suspect.kind, suspect.where, suspect.direction, suspect.confirmed) == ("endpoint", "node-002", "sends", True)
    assert (found.measured, found.possible, found.passes) == (12, 12, 5)
    assert found.endpoints == [f"node-{i:03d}" for i in range(4)]
    (verdict,) = sweeps.verdicts([found])
    assert (verdict.verdict, verdict.metric, verdict.bound, verdict.unit) == ("FAIL", "peers", 0.8, "1")
    assert verdict.value == pytest.approx(0.61)
    assert verdict.margin == pytest.approx(0.61 / 0.8 - 1)
    assert verdict.reason == sweeps.sentence(suspect)
    record = swept(flat(4, sends_2=0.61))
    assert exits.exit_code([record], [*accept.judge([record]), verdict]) == exits.FAILED


def test_who_is_not_sure_enough_does_not_fail():
    found = one(swept(flat(4, sends_2=0.9)))
    assert [s.confirmed for s in found.suspects] == [False]
    assert sweeps.verdicts([found]) == []


def test_a_clean_sweep_has_no_verdict():
    found = one(swept(flat(4)))
    assert found.suspects == []
    assert found.smallest_degradation == pytest.approx(0.05, abs=0.05)
    assert sweeps.verdicts([found]) == []


def test_what_could_not_have_shown_a_loss_clears_nobody():
    found = one(swept(flat(4)))
    assert found.smallest_degradation is not None
    assert sweeps.blind(msgspec.structs.replace(found, smallest_degradation=0.2)) == ""
    worse = msgspec.structs.replace(found, smallest_degradation=0.2001)
    (verdict,) = sweeps.verdicts([worse])
    assert (verdict.verdict, verdict.bound) == ("inconclusive", 0.8)  # a bound: it is measured again
    assert verdict.reason == (
        "a loss below 21 % would not have shown (12 of 12 pairs, 5 passes), one of 20 % must: more time (budget_s) or quiet helps"
    )
    failed = one(swept(flat(4, sends_2=0.61)))
    assert [v.verdict for v in sweeps.verdicts([msgspec.structs.replace(failed, smallest_degradation=0.9)])] == ["FAIL"]
    assert [v.verdict for v in sweeps.verdicts([msgspec.structs.replace(found, smallest_degradation=None)])] == ["inconclusive"]
    assert sweeps.verdicts([one(swept(flat(2)))]) == []


def test_sentences():
    def said(**fields) -> str:
        numbers = {"ratio": 0.612, "low": 0.58, "high": 0.64, "confirmed": True}
        return sweeps.sentence(Suspect(**fields | numbers))

    assert said(kind="endpoint", where="n/gpu5", direction="sends") == "n/gpu5 sends at 61 % of its peers (58 … 64 %)"
    assert said(kind="endpoint", where="n", direction="both") == "n sends and receives at 61 % of its peers (58 … 64 %)"
    assert said(kind="link", where="a → b") == "a → b at 61 % of its peers (58 … 64 %)"
    assert (
        said(kind="leaf", where="l1", direction="sends", note="its uplinks")
        == "leaf l1 sends at 61 % of its peers (58 … 64 %; its uplinks)"
    )
    assert said(kind="node", where="n", note="pairs inside it") == "host n at 61 % of its peers (58 … 64 %; pairs inside it)"


def test_endpoints_are_gpus_nics_hosts_or_ranks():
    places = [
        Place(rank=0, host="a", device="cuda:5", nic="mlx5_0"),
        Place(rank=1, host="b", nic="eth0"),
        Place(rank=2, host="c"),
        Place(rank=3, host="d", nic="eth0"),
        Place(rank=4, host="d", nic="eth0"),
    ]
    assert one(swept(flat(5), places)).endpoints == ["a/gpu5", "b/eth0", "c", "d/rank 3", "d/rank 4"]
    assert one(swept(flat(3), places[:2])).endpoints == ["a/gpu5", "b/eth0", "?"]


def test_launches_are_passes_of_one_sweep():
    slow, fine = swept(flat(4, sends_2=0.5)), swept(flat(4), launch=1)
    found = one(slow, fine)
    assert found.passes == 10
    assert found.suspects == []  # half of the passes: not slow in the better ones
    assert one(slow, swept(flat(4, sends_2=0.5), launch=1)).passes == 10


def test_a_launch_elsewhere_is_left_out_and_named():
    moved = [Place(rank=r, host=f"other-{r}") for r in range(4)]
    found = one(swept(flat(4)), swept(flat(4), moved, launch=1))
    assert found.passes == 5
    assert found.notes == ["launch 1 ran elsewhere than launch 0 and is left out"]


def test_what_would_fail_is_measured_afresh_and_only_that_counts():
    slow = swept(flat(4, sends_2=0.5))
    judged = verdicts.judge([slow], [], {"m1": made.machine()})
    assert [v.verdict for v in judged if v.metric == sweeps.METRIC] == ["FAIL"]
    more = retry.again([made.planned(slow)], [slow], judged)
    assert [(p.launch, p.confirms) for p in more] == [(1, True), (2, True)]
    fresh = [swept(flat(4), launch=n, confirms=True) for n in (1, 2)]
    assert one(slow, *fresh).suspects == []
    assert not [v for v in verdicts.judge([slow, *fresh], [], {"m1": made.machine()}) if v.metric == sweeps.METRIC]
    again = [swept(flat(4, sends_2=0.5), launch=n, confirms=True) for n in (1, 2)]
    assert one(slow, *again).passes == 10
    judged = verdicts.judge([slow, *again], [], {"m1": made.machine()})
    assert [v.verdict for v in judged if v.metric == sweeps.METRIC] == ["FAIL"]


def test_the_topology_reaches_the_verdicts():
    sweep = flat(12)
    sweep[:, 4:8, :4] *= 0.5
    sweep[:, 4:8, 8:] *= 0.5
    (found,) = [
        v
        for v in verdicts.judge([swept(sweep)], [], {"m1": made.machine()}, verdicts.Asked(topology=TOPOLOGY))
        if v.metric == "peers"
    ]
    assert found.reason.startswith("leaf leaf-1 sends at 50 % of its peers")


def test_leaves_come_from_the_topology_and_strangers_are_reported():
    sweep = flat(13)
    sweep[:, 4:8, :4] *= 0.5
    sweep[:, 4:8, 8:12] *= 0.5
    found = one(swept(sweep), leaves=TOPOLOGY)
    assert {(s.kind, s.where, s.direction) for s in found.suspects} == {("leaf", "leaf-1", "sends")}
    assert found.notes == ["in no leaf of the topology, or not in one alone: node-012"]
    assert not any(s.kind == "leaf" for s in one(swept(sweep)).suspects)


def test_two_endpoints_of_which_nothing_can_be_believed_are_not_cleared():
    well = one(swept(flat(2)))
    assert (well.measured, sweeps.blind(well)) == (2, "")
    series = series_of(flat(2)) | {"pair_to": Series(unit="rank", values=[1.0])}
    broken = swept(flat(2), series=series)
    assert sweeps.blind(one(broken)) == "no endpoint could be judged (0 of 2 pairs, 1 passes)"
    judged = verdicts.judge([broken], [], {"m1": made.machine()})
    assert [v.verdict for v in judged if v.metric == sweeps.METRIC] == ["inconclusive"]


def test_pairs_without_a_number_are_counted():
    sweep = flat(4)
    sweep[:, 0, 1] = np.nan
    found = one(swept(sweep))
    assert (found.measured, found.possible) == (11, 12)
    assert found.suspects == []


@pytest.mark.parametrize(
    "change",
    [
        {"pair_from": Series(unit="rank", values=[0.0])},
        {"pair_from": Series(unit="rank", values=[0.5] * 12)},
        {"pair_from": Series(unit="rank", values=[-1.0] * 12)},
        {"pair_to": Series(unit="rank", values=[4.0] * 12)},
        {"pair_seconds": Series(unit="s", values=[1.0] * 13)},
        {"pair_seconds": Series(unit="s", values=[0.0] * 12)},
        {"pair_seconds": Series(unit="s", values=[])},
    ],
)
def test_series_that_do_not_belong_together_say_nothing(change):
    found = one(swept(flat(4), series=series_of(flat(4)) | change))
    assert found.suspects == []
    assert found.measured == 0
    assert "launch 0 holds series that do not belong together" in found.notes


def test_series_may_be_missing():
    only = {"pair_seconds": series_of(flat(4))["pair_seconds"]}
    assert "launch 0 holds series that do not belong together" in one(swept(flat(4), series=only)).notes


def test_too_many_endpoints_are_not_looked_at():
    record = swept(flat(4), ranks=10**7)
    found = one(record)
    assert found.suspects == []
    assert any("more than 1024" in note for note in found.notes)


def test_what_is_no_sweep_is_not_looked_at():
    assert sweeps.findings([swept(flat(4), status="error", measurement=None)]) == []


def test_a_sweep_is_not_restless_for_its_pairs_differ():
    record = swept(flat(4))
    samples = [0.01, 0.02, 0.03] * 20
    uneven = msgspec.structs.replace(record, measurement=msgspec.structs.replace(record.measurement, samples_s=samples))
    assert warnings.doubts([uneven]) == []
    plain = msgspec.structs.replace(record, measurement=msgspec.structs.replace(uneven.measurement, series={}))
    assert {"restless"} <= {w.name for w in warnings.doubts([plain])}


numbers = st.lists(st.floats(-5, 5) | st.integers(-2, 6).map(float), max_size=30)


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, st.lists(st.floats(-1, 1e9), max_size=60))
def test_any_series_is_read_without_an_error(senders, receivers, seconds):
    series = {
        "pair_from": Series(unit="rank", values=senders),
        "pair_to": Series(unit="rank", values=receivers),
        "pair_seconds": Series(unit="s", values=seconds),
    }
    found = one(swept(flat(4), series=series))
    msgspec.json.decode(msgspec.json.encode(found), type=PairFindings)


def gpus(count: int, host: str = "n") -> list[Place]:
    return [Place(rank=rank, host=host, device=f"cuda:{rank}") for rank in range(count)]


def wired(count: int, kind: str = "nvlink", **more) -> Machine:
    links = [Link(a=a, b=b, kind=kind, **more) for a in range(count) for b in range(a + 1, count)]  # type: ignore[arg-type]
    return made.machine(gpus=count, host="n", links=links)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (wired(4, lanes=18), "over NVLink, 18 lanes"),
        (wired(4, lanes=1), "over NVLink, 1 lane"),
        (wired(4, "pcie", ancestor="host bridge"), "over PCIe (host bridge)"),
        (wired(4, "pcie"), "over PCIe"),
        (wired(4, ""), ""),
        (made.machine(host="other"), ""),
    ],
)
def test_a_suspect_inside_a_host_says_what_its_pairs_go_over(machine, words):
    (link,) = sweeps.findings([swept(flat(4, link_0_2=0.5), gpus(4))], machines=[machine])[0].suspects
    assert (link.where, link.note) == ("n/gpu0 → n/gpu2", words)
    (end,) = sweeps.findings([swept(flat(4, sends_1=0.5), gpus(4))], machines=[machine])[0].suspects
    assert (end.where, end.note) == ("n/gpu1", words)


def test_an_endpoint_whose_links_differ_is_not_said_to_have_one():
    links = [Link(a=0, b=1, kind="nvlink", lanes=4), *(Link(a=a, b=b, kind="pcie") for a, b in ((0, 2), (1, 2), (0, 3)))]
    machine = made.machine(gpus=4, host="n", links=links)
    (end,) = sweeps.findings([swept(flat(4, sends_0=0.5), gpus(4))], machines=[machine])[0].suspects
    assert (end.where, end.note) == ("n/gpu0", "")
    (link,) = sweeps.findings([swept(flat(4, link_1_0=0.5), gpus(4))], machines=[machine])[0].suspects
    assert link.note == "over NVLink, 4 lanes"


# -- several kinds of links inside one host

RATES = {"nvlink": 80e9, "single switch": 24e9, "system": 10e9}


def bridged(host: str = "n", without: tuple[tuple[int, int], ...] = (), lanes: int = 4) -> Machine:
    """Four GPUs: 0 and 1, 2 and 3 joined by a bridge (but ``without``); 0 and 2 on one switch; the rest across processors."""
    links: list[Link] = []
    for a, b in itertools.combinations(range(4), 2):
        if (a, b) in ((0, 1), (2, 3)) and (a, b) not in without:
            links.append(Link(a=a, b=b, kind="nvlink", lanes=lanes, ancestor="single switch"))
        else:
            links.append(Link(a=a, b=b, kind="pcie", ancestor="single switch" if (a, b) == (0, 2) else "system"))
    return made.machine(gpus=4, host=host, machine_id=host, links=links)


def mixed(machines: list[Machine], **slow: float):
    """A sweep over their GPUs: each pair at the rate of its kind, times what is planted (as in `flat`); and the placement."""
    places = [Place(rank=4 * n + gpu, host=m.host, device=f"cuda:{gpu}") for n, m in enumerate(machines) for gpu in range(4)]
    sweep = flat(len(places), **slow)
    for n, machine in enumerate(machines):
        for link in machine.links:
            rate = RATES["nvlink" if link.kind == "nvlink" else link.ancestor] / 1e9
            for a, b in ((link.a, link.b), (link.b, link.a)):
                sweep[:, 4 * n + a, 4 * n + b] *= rate
    return swept(sweep, places)


def suspects(machines: list[Machine], **slow: float) -> set[tuple[str, str, str, bool]]:
    (found,) = sweeps.findings([mixed(machines, **slow)], machines=machines)
    return {(s.kind, s.where, s.direction, s.confirmed) for s in found.suspects}


def test_a_host_whose_pairs_go_by_several_kinds_of_links_has_no_suspects():
    assert suspects([bridged()]) == set()
    assert suspects([bridged(f"n{n}") for n in range(3)]) == set()


def test_gpus_without_nvlink_among_others_with_it_are_no_suspects_and_a_slow_one_of_them_is():
    links = [
        Link(a=a, b=b, kind="pcie" if b > 5 else "nvlink", lanes=None if b > 5 else 2, ancestor="node")
        for a, b in itertools.combinations(range(8), 2)
    ]
    machine = made.machine(gpus=8, host="n", links=links)
    built = np.where(np.arange(8) > 5, 0.25, 1.0)
    rates = np.minimum(built[:, None], built[None, :])
    (found,) = sweeps.findings([swept(flat(8) * rates, gpus(8))], machines=[machine])
    assert found.suspects == []
    (found,) = sweeps.findings([swept(flat(8, sends_6=0.5) * rates, gpus(8))], machines=[machine])
    assert {(s.kind, s.where, s.direction) for s in found.suspects} == {("endpoint", "n/gpu6", "sends")}


def test_a_slow_nvlink_is_not_hidden_by_slower_kinds_and_a_slow_path_over_pcie_not_by_nvlink():
    for slow, where in ((0.5, "n/gpu0 → n/gpu1"), (0.7, "n/gpu0 → n/gpu1")):
        assert suspects([bridged()], link_0_1=slow) == {("link", where, "", True)}  # still faster than any other kind
    assert suspects([bridged()], link_0_1=0.5, link_1_0=0.5) == {
        ("link", "n/gpu0 → n/gpu1", "", True),
        ("link", "n/gpu1 → n/gpu0", "", True),
    }
    assert suspects([bridged()], link_1_2=0.5) == {("link", "n/gpu1 → n/gpu2", "", True)}
    assert suspects([bridged()], sends_3=0.5) == {("endpoint", "n/gpu3", "sends", True)}
    (found,) = sweeps.findings([mixed([bridged()], link_0_1=0.5)], machines=[bridged()])
    assert found.suspects[0].note == "over NVLink, 4 lanes"


def test_a_host_where_a_bridge_is_off_is_held_against_the_others():
    """By itself it would be a host of PCIe, and well."""
    machines = [bridged("n0"), bridged("n1", without=((2, 3),)), bridged("n2"), bridged("n3")]
    assert suspects(machines) == {("link", "n1/gpu2 → n1/gpu3", "", True), ("link", "n1/gpu3 → n1/gpu2", "", True)}
    (found,) = sweeps.findings([mixed(machines)], machines=machines)
    assert found.suspects[0].note == "over PCIe (system), over NVLink, 4 lanes on most hosts"
    two = [bridged("n0"), bridged("n1", without=((2, 3),))]
    assert suspects(two) == set()  # which of two is the usual one?


def test_a_gpu_with_fewer_lanes_to_its_switch_is_no_kind_of_its_own():
    links = [Link(a=a, b=b, kind="nvlink", lanes=12 if 3 in (a, b) else 18) for a in range(8) for b in range(a + 1, 8)]
    machine = made.machine(gpus=8, host="n", links=links)
    (found,) = sweeps.findings([swept(flat(8, sends_3=0.67, receives_3=0.67), gpus(8))], machines=[machine])
    assert {(s.where, s.direction) for s in found.suspects} == {("n/gpu3", "both")}
    assert found.suspects[0].note == "over NVLink, 12 lanes"


def test_a_pair_that_is_alone_of_its_kind_is_said_to_be():
    (found,) = sweeps.findings([mixed([bridged()])], machines=[bridged()])
    assert found.notes == ["alone of their kind, and held against no other pair: n/gpu0 and n/gpu2 over PCIe (single switch)"]
    (found,) = sweeps.findings([mixed([bridged("a"), bridged("b")])], machines=[bridged("a"), bridged("b")])
    assert found.notes == []
