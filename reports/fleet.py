"""A fleet for a person (who is bad, why, and what this fleet could not have shown) and for the scripts that act on it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.cells import cell_len

from clustergauge import exits, folder, hosts
from clustergauge.blamed import CaseFinding, Fleet, Joint, Node, Reason
from clustergauge.confirm import Outcome
from clustergauge.reduce import Part
from clustergauge.units import counted, format_time
from clustergauge.valid import printable
from reports.layout import Page, fit, pad, put, squeezed, width_of

STYLES = {"bad": "bold red", "suspect": "yellow", "unmeasured": "yellow", "good": "green"}
REASONS_SHOWN = 3
CASES_SHOWN = 12
JOINT_SHOWN = 8
NOTES_SHOWN = 40
FILES = {"bad": folder.BAD, "suspect": folder.SUSPECT, "unmeasured": folder.UNMEASURED}
"""Host lists by state, as `scontrol` and `pdsh` take them."""


def show(fleet: Fleet, form: str, outcomes: Sequence[Outcome] = (), part: Part | None = None) -> None:
    """Print the judgement on stdout as ``text``, ``html`` or ``json`` (where the reasons say what was confirmed).

    ``outcomes``: what measuring suspects again came to; ``part``: what was judged, for the pictures of a page.
    """
    if form == "html":
        from reports import fleet_page

        sys.stdout.buffer.write(fleet_page.html_of(fleet, part).encode(errors="replace"))
    elif form == "json":
        sys.stdout.buffer.write(msgspec.json.encode(fleet) + b"\n")
    else:
        put(page_of(fleet, width_of(sys.stdout), outcomes))


def page_of(fleet: Fleet, width: int, outcomes: Sequence[Outcome] = ()) -> Page:
    """The judgement as lines of at most ``width`` cells: cases first, bad nodes last.

    ``outcomes``: what measuring suspects again came to.
    """
    page = Page(width)
    kinds = len({c.peer_class for c in fleet.cases})
    cases = counted(len({c.case for c in fleet.cases}), "case")
    page.add((counted(len(fleet.nodes), "node"), "bold"), f" · {cases} compared" + (f" · {kinds} classes" if kinds > 1 else ""))
    for note in notes_of(fleet):
        page.wrap(note, "note: ", "dim", 2)
    page.gap()
    _cases(page, fleet.cases)
    for rack in fleet.racks:
        of = counted(rack.devices, "device")
        page.wrap(f"rack {rack.rack}: {rack.case} at {rack.ratio:.0%} of the others ({of})", "rack slow: ", "yellow")
    page.gap()
    _joint(page, fleet.joint)
    page.gap()
    _outcomes(page, outcomes)
    page.gap()
    for state in ("unmeasured", "suspect", "bad"):
        for node in reversed(fleet.of(state)):
            _node(page, node)
    page.gap()
    counts = Counter(node.state for node in fleet.nodes)
    parts: list[str | tuple[str, str]] = []
    for state in ("good", "suspect", "bad", "unmeasured"):
        if counts[state]:
            parts += [" · "] if parts else []
            parts.append((f"{counts[state]} {state}", STYLES[state]))
    page.add(*parts or ["no nodes"])
    return page


def notes_of(fleet: Fleet) -> list[str]:
    """What a reader should know of all of it; of very many notes the first ones."""
    more = len(fleet.notes) - NOTES_SHOWN
    return [*fleet.notes[:NOTES_SHOWN], *([f"… and {more} more: --format json has them all"] if more > 0 else [])]


def _cases(page: Page, cases: Sequence[CaseFinding]) -> None:
    """What each case said, those that could show least first: the smallest loss that would have been found."""
    if not cases:
        page.add("no case was measured on enough devices of one kind to hold them against each other")
        return
    known = sorted(cases, key=lambda c: -(c.smallest or 0.0))
    shown = known[:CASES_SHOWN]
    rows = [
        (
            printable(c.case),
            str(c.devices),
            format_time(c.usual),
            f"{(c.high / c.low - 1):.0%}".replace("%", " %"),
            smallest_of(c),
        )
        for c in shown
    ]
    labels = ("case", "devices", "median", "slowest over fastest", "loss it would show")
    widths = [max(cell_len(row[i]) for row in [*rows, labels]) for i in range(1, 5)]
    name = min(max(cell_len(r[0]) for r in [*rows, labels]), page.width - sum(widths) - 8)
    short = squeezed([row[0] for row in rows], name) | {labels[0]: labels[0]}
    for number, row in enumerate([labels, *rows]):
        cells = [pad(short[row[0]], name), *(pad(t, w, right=True) for t, w in zip(row[1:], widths, strict=True))]
        page.add(("  ".join(cells), "bold" if number == 0 else ""))
    if len(known) > len(shown):
        page.add((f"… and {len(known) - len(shown)} more, which would show smaller losses", "dim"))
    if any(c.weak for c in cases):
        page.wrap("groups of fewer than 8 devices are weak evidence", "note: ", "dim")


def smallest_of(case: CaseFinding) -> str:
    """The smallest loss that a case would have shown, in words."""
    return f"{100 * case.smallest / (1 + case.smallest):.1f} %" if case.smallest else "–"


def _joint(page: Page, joint: Sequence[Joint]) -> None:
    """Cases over nodes that came to no good, the worst first."""
    for one in worst_first(joint)[:JOINT_SHOWN]:
        page.wrap(printable(f"{one.case} on {one.device}{one.reason and f': {one.reason}'}"), f"{one.word}: ", style_of(one), 3)
    if len(joint) > JOINT_SHOWN:
        page.add((f"… and {len(joint) - JOINT_SHOWN} more over several nodes", "dim"))


def worst_first(joint: Sequence[Joint]) -> list[Joint]:
    """Those that weigh most in the exit code first."""
    return sorted(joint, key=lambda one: exits.code_of([one.word]) == exits.UNKNOWN)


def style_of(one: Joint) -> str:
    """How its word is printed."""
    return "yellow" if exits.code_of([one.word]) == exits.UNKNOWN else "bold red"


def _outcomes(page: Page, outcomes: Sequence[Outcome]) -> None:
    """The suspects that were measured again: cleared first, confirmed last."""
    order = ("cleared", "could not be measured", "confirmed")
    for outcome in sorted(outcomes, key=lambda o: order.index(o.word)):
        suspect = outcome.suspect
        at = f" on {suspect.device}" if suspect.device else ""
        now = f", measured again {outcome.ratio:.0%}" if outcome.ratio is not None else ""
        told = f"{suspect.host}: {suspect.kind} at {suspect.ratio:.0%} of its peers{now}{at} in {suspect.case}"
        style = {"cleared": "green", "confirmed": "bold red"}.get(outcome.word, "yellow")
        page.wrap(printable(told + (f": {outcome.why}" if outcome.why else "")), f"{outcome.word}: ", style, 2)


def _node(page: Page, node: Node) -> None:
    where = f" (rack {printable(node.rack)})" if node.rack else ""
    page.add((f"{node.state:<10} ", STYLES[node.state]), (fit(printable(node.name) + where, page.width - 11), "bold"))
    for reason in node.reasons[:REASONS_SHOWN]:
        page.wrap(words(reason), "  ", "", 3)
    if len(node.reasons) > REASONS_SHOWN:
        page.add((f"  … and {len(node.reasons) - REASONS_SHOWN} more", "dim"))


def words(reason: Reason) -> str:
    """A reason in one line."""
    at = f" on {reason.device}" if reason.device else ""
    of = f" in {reason.case}" if reason.case else ""
    ratio = f" at {reason.ratio:.0%} of its peers" if reason.ratio is not None else ""
    sure = "" if reason.kind not in ("slow", "intermittent") else ", confirmed" if reason.confirmed else ", not confirmed"
    return printable(f"{reason.kind}{ratio}{at}{of}{sure}" + (f": {reason.detail}" if reason.detail else ""))


ALONE = "nothing failed, but it was held against nobody: too few like it were measured"


def lists_of(fleet: Fleet) -> dict[str, bytes]:
    """``nodes.json`` and the compressed host lists of bad, suspect and unmeasured nodes, by file name: for scripts that drain.

    Nothing here is ever executed by us.  Names that are no host names go into ``nodes.json`` alone.
    """
    nodes = [
        {
            "host": node.host,
            "machine_id": node.machine_id,
            "state": node.state,
            "rack": node.rack,
            "reason": words(node.reasons[0]) if node.reasons else ALONE if node.name in fleet.alone else "",
            "parts": node.parts,
        }
        | ({"run": node.run} if node.run else {})
        for node in fleet.nodes
    ]
    files = {folder.NODES: msgspec.json.format(msgspec.json.encode({"schema": 1, "nodes": nodes})) + b"\n"}
    for state, name in FILES.items():
        names = hosts.ordered({node.host for node in fleet.nodes if node.state == state and hosts.is_name(node.host)})
        files[name] = (hosts.compress(names) + "\n").encode() if names else b""
    return files


def write_lists(fleet: Fleet, where: Path) -> list[Path]:
    """Writes `lists_of` the fleet into a folder, which is made; the files.  Raises ``OSError``."""
    where.mkdir(parents=True, exist_ok=True)
    files = lists_of(fleet)
    for name, content in files.items():
        (where / name).write_bytes(content)
    return [where / name for name in files]
