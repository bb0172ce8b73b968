"""A fleet as one HTML page, or as a section of the page of a run: who is bad first, then where devices lie among their peers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from clustergauge import alike, exits, hosts
from clustergauge.blamed import CaseFinding, Fleet, Node, State
from clustergauge.reduce import Part
from clustergauge.units import counted, format_time
from reports import charts
from reports.charts import Strip
from reports.fleet import notes_of, smallest_of, words, worst_first
from reports.web import banner, document, paragraph, section, table

MOST_NODES, MOST_CASES, MOST_STRIPS, MOST_NAMED, MOST_REASONS = 1000, 400, 24, 20, 5
"""What a page holds, so that it stays small; it says what it leaves out."""
STATES: dict[State, str] = {"bad": "bad", "suspect": "doubt", "unmeasured": "doubt", "good": "good"}


def html_of(fleet: Fleet, part: Part | None = None) -> str:
    """The whole page.  ``part``: what was judged, to draw where devices lie."""
    unwell = [node for node in fleet.nodes if node.state != "good"]
    parts = [
        *_banner(fleet),
        *section("Nodes to look at", _nodes(unwell)),
        *section("Cases over several nodes that came to no good", _joint(fleet)),
        *section("Racks that are slow as a whole", _racks(fleet)),
        *section("Where devices lie among their peers", _strips(fleet, part) if part else ()),
        *section("What each case would have shown", _cases(fleet.cases)),
        *section("Nodes without a finding", _good(fleet.of("good"))),
        *section("Methods", _methods(fleet)),
    ]
    return document(f"ClusterGauge fleet of {counted(len(fleet.nodes), 'node')}", parts)


def inside(fleet: Fleet, part: Part) -> Iterator[str]:
    """The same for the page of the one run that measured all these nodes, below a heading there."""
    style, lead, told = _lead(fleet)
    yield paragraph(f"{lead}: {told}.", style)
    yield from _notes(fleet)
    yield from _nodes([node for node in fleet.nodes if node.state != "good"])
    yield from _joint(fleet)
    yield from _racks(fleet)
    yield from _strips(fleet, part)
    yield from _cases(fleet.cases)
    if good := list(_good(fleet.of("good"))):
        yield paragraph("Without a finding:")
        yield from good
    yield from _methods(fleet)


def _banner(fleet: Fleet) -> Iterator[str]:
    yield banner(*_lead(fleet))
    yield from _notes(fleet)


def _lead(fleet: Fleet) -> tuple[str, str, str]:
    """A style, what it all comes to, and the counts."""
    count = Counter(node.state for node in fleet.nodes)
    told = " · ".join(f"{count[state]} {state}" for state in STATES if count[state]) or "no nodes"
    unsure = count["suspect"] + count["unmeasured"]
    if count["bad"]:
        some = "is" if count["bad"] == 1 else "are"
        lead, style = f"{count['bad']} of {counted(len(fleet.nodes), 'node')} {some} bad", "bad"
    elif (code := exits.code_of(one.word for one in fleet.joint)) in (exits.BROKEN, exits.FAILED):
        lead, style = "No node is known to be bad, but cases over several of them failed", "bad"
    elif unsure or fleet.racks or not fleet.nodes or code:
        lead, style = "No node is known to be bad, but not all are known to be good", "doubt"
    elif fleet.alone:
        some = "no node was" if len(fleet.alone) == len(fleet.nodes) else "not all nodes were"
        lead, style = f"Nothing failed, but {some} held against others", "doubt"
    else:
        lead, style = "Nobody stands out", "good"
    return style, lead, told


def _notes(fleet: Fleet) -> Iterator[str]:
    for note in notes_of(fleet):
        yield paragraph(note, "doubt")


def _nodes(nodes: Sequence[Node]) -> Iterator[str]:
    if not nodes:
        return
    told = [[node.name, node.state, node.rack, _reasons(node), ", ".join(node.parts[:8])] for node in nodes[:MOST_NODES]]
    left = f"; {len(nodes) - MOST_NODES} more are left out of this page" if len(nodes) > MOST_NODES else ""
    styles = [STATES[node.state] for node in nodes[:MOST_NODES]]
    head = ["node", "state", "rack", "why", "parts"]
    yield table(f"{counted(len(nodes), 'node')}, the worst first{left}", head, told, styles, word="state")


def _reasons(node: Node) -> str:
    """The first ones, and how many more there are."""
    more = len(node.reasons) - MOST_REASONS
    return "; ".join([*map(words, node.reasons[:MOST_REASONS]), *([f"and {more} more"] if more > 0 else [])])


def _joint(fleet: Fleet) -> Iterator[str]:
    if fleet.joint:
        shown = worst_first(fleet.joint)[:MOST_CASES]
        left = f"; {len(fleet.joint) - MOST_CASES} more are left out of this page" if len(fleet.joint) > MOST_CASES else ""
        told = [[one.word, one.case, one.device, one.reason] for one in shown]
        yield table(f"{counted(len(fleet.joint), 'finding')}, the worst first{left}", ["what", "case", "on", "why"], told)


def _racks(fleet: Fleet) -> Iterator[str]:
    if fleet.racks:
        told = [[r.rack, r.case, f"{100 * r.ratio:.0f} %", str(r.devices)] for r in fleet.racks]
        head = ["rack", "case", "of the others", "devices"]
        yield table(counted(len(told), "finding"), head, told, ["doubt"] * len(told), word="of the others")


def _strips(fleet: Fleet, part: Part) -> Iterator[str]:
    """The cases in which somebody was found first; those that are found in them by name."""
    accused = {node.machine_id: node for node in fleet.nodes if node.machine_id and node.state in ("bad", "suspect")}
    blamed = Counter(reason.case for node in accused.values() for reason in node.reasons if reason.case)
    chosen = sorted(fleet.cases, key=lambda c: (-blamed[c.case], -(c.smallest or 0.0)))[:MOST_STRIPS]
    rows: list[Strip] = []
    for case, shares in zip(chosen, alike.shares(part, chosen), strict=True):
        of_case = {(m, r.device) for m, node in accused.items() for r in node.reasons if r.case == case.case}
        blameworthy = (s for s in shares if not of_case.isdisjoint({(s.machine_id, s.device), (s.machine_id, "")}))
        slowest = sorted(blameworthy, key=lambda s: s.value)[:MOST_NAMED]
        pointed = {(s.machine_id, s.device) for s in slowest}
        named = {f"{accused[s.machine_id].host} {s.device}": (s.value, STATES[accused[s.machine_id].state]) for s in slowest}
        others = [s.value for s in shares if (s.machine_id, s.device) not in pointed]
        if shares:
            rows.append(Strip(case.case, others, named))
    if rows:
        yield charts.strips("Speed of every device over the median of its class", rows, "of its peers", _percent)
    if len(fleet.cases) > MOST_STRIPS:
        yield paragraph(f"{len(fleet.cases) - MOST_STRIPS} more cases are not drawn; the table below has them.")


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _cases(cases: Sequence[CaseFinding]) -> Iterator[str]:
    known = sorted(cases, key=lambda c: -(c.smallest or 0.0))
    told = [
        [c.case, c.device, str(c.devices), format_time(c.usual), f"{100 * (c.high / c.low - 1):.0f} %", smallest_of(c)]
        for c in known[:MOST_CASES]
    ]
    if told:
        left = f"; {len(cases) - MOST_CASES} more are left out of this page" if len(cases) > MOST_CASES else ""
        head = ["case", "on", "devices", "median", "slowest over fastest", "loss it would show"]
        yield table(f"{counted(len(cases), 'case')}, those that show least first{left}", head, told)


def _good(nodes: Sequence[Node]) -> Iterator[str]:
    if nodes:
        names = hosts.ordered({node.host for node in nodes if hosts.is_name(node.host)})
        odd = len(nodes) - len(names)
        yield paragraph(hosts.compress(names) + (f" and {odd} whose names are no host names" if odd else ""))


def _methods(fleet: Fleet) -> Iterator[str]:
    yield paragraph(
        "Devices of machines with the same parts, drivers, libraries and settings are peers. A device is slow when it lies "
        "further from the median of its peers than chance explains among so many, and bad when fresh launches agree. Who is not "
        "named may still be slower by less than the table of cases says would show."
    )
    if any(case.weak for case in fleet.cases):
        yield paragraph("Groups of fewer than 8 devices are weak evidence.", "doubt")
