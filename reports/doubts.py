"""What a reader of a run should know before believing it: warnings of its cases, of its machines, and of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from clustergauge import warnings
from clustergauge.hosts import spans
from clustergauge.loading import LoadedRun
from clustergauge.model import Warning_
from clustergauge.valid import printable
from reports.called import Called
from reports.layout import Page, listed
from reports.rows import Row

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

MANY = 3
"""More cases than this share one line of a warning."""


def draw(page: Page, loaded: LoadedRun, rows: Sequence[Row], called: Called, ceiling: CeilingOf) -> None:
    """Warnings of cases, those that share a name and a remedy together; then of the run and its machines."""
    shared: dict[tuple[str, str], list[tuple[Row, Warning_]]] = {}
    for row in rows:
        for doubt in warnings.doubts(row.measured, ceiling) if row.metrics else []:
            shared.setdefault((doubt.name, doubt.remedy), []).append((row, doubt))
    for (name, remedy), found in shared.items():
        if len(found) > MANY:
            lead = f"warning: {printable(name)}: {len(found)} cases: "
            cases = list(dict.fromkeys(called.names[row.case] for row, _ in found))
            page.add((lead, "yellow"), listed(cases, page.width - cell_len(lead)))
            _most_often(page, called, found)
        else:
            for row, doubt in found:
                _warning(page, name, f"{called.where(row)}: {doubt.detail}")
        page.wrap(remedy, "  → ", "dim")
    health: dict[str, list[str]] = {}
    for row in rows:
        for record in [] if row.metrics else row.records:  # those with numbers have had their say as doubts
            for counter, change in record.counters.health.items():
                if counter != "unknown":
                    health.setdefault(f"{counter}: {change}", []).append(called.where(row))
    for change, places in health.items():
        _warning(page, "health", f"{change} during {listed(list(dict.fromkeys(places)), page.width)}")
    _findings(page, loaded)
    for doubt in warnings.of_run(loaded.records):
        _warning(page, doubt.name, doubt.detail)
        page.wrap(doubt.remedy, "  → ", "dim")


def _most_often(page: Page, called: Called, found: Sequence[tuple[Row, Warning_]]) -> None:
    """Which ranks a warning that many cases share is about, most often first; or which of several hosts, where most are."""
    lead, count = "  most often: ", len(found)
    counts = Counter(doubt.who for _, doubt in found if doubt.who)
    if not counts and len(called.hosts) > 1:
        places = Counter(called.hosts.get(row.machine_id, "") for row, _ in found if not spans(row.device))
        counts = Counter({host: times for host, times in places.items() if host and 2 * times > count})
    if counts:
        told = [printable(f"{who} ({times} of {count})") for who, times in counts.most_common()]
        page.add(lead, listed(told, page.width - cell_len(lead)))


def _findings(page: Page, loaded: LoadedRun) -> None:
    found: dict[tuple[str, str, str], list[str]] = {}
    unread = {str(r.counters.health["unknown"]) for r in loaded.records if "unknown" in r.counters.health}
    unknown = dict.fromkeys(name for names in sorted(unread) for name in names.split(","))
    for machine in loaded.machines.values():
        for finding in machine.findings:
            if finding.fails:
                continue  # it has a row of its own
            if finding.state == "warning":
                found.setdefault((finding.name, finding.detail, finding.remedy), []).append(machine.host)
            elif finding.state == "unknown":
                unknown[finding.name] = None
    for (name, detail, remedy), hosts in found.items():
        where = f"{listed(hosts, page.width // 2)}: " if len(loaded.machines) > 1 else ""
        _warning(page, name, where + detail)
        page.wrap(remedy, "  → ", "dim")
    if unknown:
        page.wrap(f"unknown, because unreadable here: {', '.join(unknown)}", style="dim", most=2)


def _warning(page: Page, name: str, detail: str) -> None:
    page.wrap(f"{name}: {detail}", "warning: ", "yellow", 4)
