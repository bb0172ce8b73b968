"""A run as one HTML page: the verdict first, then what is bad, then everything else, each picture with its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clustergauge import exits, readings, reduce, warnings
from clustergauge.blamed import Fleet
from clustergauge.compare import Before
from clustergauge.gauged import Gauged
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine, PairFindings
from clustergauge.units import about, counted, format_rate, format_time
from reports import fleet_page, page_charts, storage
from reports.details import in_one_line
from reports.export import host_of, lacking, owed, reason_of, unanswered
from reports.layout import short_names
from reports.rows import BAD, Row, Word, worst_first
from reports.table import amount, percent, sign_of
from reports.web import banner, document, paragraph, section, table

if TYPE_CHECKING:
    from clustergauge.believed import CeilingOf

MOST_ROWS, LEAST_ROWS, MOST_MACHINES, MOST_WARNINGS, MOST_LEFT_OUT = 2000, 200, 50, 200, 50
"""What a page holds, so that it stays small; it says what it leaves out.  Rows: of all tables of results, and of one of them."""
UNTIMED = ("verified", "skipped")
STYLES: dict[Word, str] = {**dict.fromkeys(BAD, "bad"), "inconclusive": "doubt", "not measured": "doubt", "pass": "good"}


def html_of(
    loaded: LoadedRun,
    rows: Sequence[Row],
    found: Sequence[PairFindings] = (),
    ceiling: CeilingOf | None = None,
    before: Before | None = None,
    gauges: Sequence[Gauged] = (),
    fleet: Fleet | None = None,
    code: int = exits.OK,
) -> str:
    """The whole page.

    ``found``: what transfers between pairs say; ``ceiling``: what physics allows a metric; ``before``: what differs from the run
    that this one is held against; ``gauges``: what the gauge found when it gauged itself on the machines of the run; ``fleet``:
    its nodes held against each other; ``code``: the exit code of its results, beside which no banner looks better.
    """
    bad = [r for r in rows if r.word in BAD]
    timed = [r for r in rows if r.word not in (*BAD, *UNTIMED)]
    rest = [r for r in rows if r.word in UNTIMED]
    of_timed = min(len(timed), max(LEAST_ROWS, MOST_ROWS - len(bad)))
    of_rest = min(len(rest), max(LEAST_ROWS, MOST_ROWS - len(bad) - of_timed))
    parts = [
        *_banner(loaded, rows, fleet, code),
        *section("What must be looked at", _results(loaded, bad, "bad, the worst first", MOST_ROWS - of_timed - of_rest)),
        *section("Nodes against each other", fleet_page.inside(fleet, reduce.part_of(loaded)) if fleet else ()),
        *section("Results", _results(loaded, timed, "with a number", of_timed)),
        *section("Not timed", _results(loaded, rest, "skipped, or checked alone", of_rest)),
        *section("Machines", _machines(list(loaded.machines.values()))),
        *section("What differs from the baseline", _differences(before)),
        *section("Against the roof", page_charts.rooflines(loaded, rows)),
        *section("By size", page_charts.sizes(loaded, rows)),
        *section("Between pairs", page_charts.between_pairs(loaded, found)),
        *section("Distributions of times", page_charts.distributions(loaded, rows)),
        *section("Warnings", _warnings(loaded, rows, ceiling)),
        *section("Methods", [*_methods(loaded), *_gauged(loaded, gauges)]),
    ]
    return document(f"ClusterGauge run {loaded.run.run_id}", parts)


def _banner(loaded: LoadedRun, rows: Sequence[Row], fleet: Fleet | None, code: int) -> Iterator[str]:
    count = Counter(row.word for row in rows)
    missing = len(unanswered(loaded))
    bad = sum(count[word] for word in BAD)
    failed = any(count[word] for word in BAD if word != "inconclusive")
    style = "bad" if failed else "doubt" if bad or missing or not count["pass"] else "good"
    lead = (
        f"{bad} of {counted(len(rows), 'case')} must be looked at" if bad
        else "Nothing failed, but the run is not whole" if missing
        else "All that was asked is met" if count["pass"] else "Nothing was held against a criterion"
    )  # fmt: skip
    unwell = {state: len(fleet.of(state)) for state in fleet_page.STATES if state != "good"} if fleet else {}
    if any(unwell.values()):
        lead += "; nodes: " + ", ".join(f"{n} {state}" for state, n in unwell.items() if n)
        style = "bad" if unwell["bad"] else "doubt" if style == "good" else style
    if code != exits.OK and style == "good":
        lead, style = "Nothing failed, but not all is known to be good", "doubt"
        if code != exits.UNKNOWN:
            lead, style = f"No case failed, but the run came to exit code {code}", "bad"
    words = " · ".join(f"{n} {_word(word)}" for word, n in count.most_common()) or "no case was measured"
    yield banner(style, lead, words)
    if missing:
        yield paragraph(f"{lacking(missing, owed(loaded.run))}.", "doubt")
    left_out = [f"node {name}: {why}" for name, why in loaded.run.left_out.items()]
    for words in left_out[:MOST_LEFT_OUT]:
        yield paragraph(words, "doubt")
    if len(left_out) > MOST_LEFT_OUT:
        yield paragraph(f"{len(left_out) - MOST_LEFT_OUT} more nodes were not measured, or not in all cases.", "doubt")
    for note in loaded.notes:
        yield paragraph(note, "doubt")


def _word(word: str) -> str:
    return "ok (no criterion)" if word == "unreferenced" else word


def _results(loaded: LoadedRun, rows: list[Row], caption: str, most: int) -> Iterator[str]:
    if not rows:
        return
    rows = worst_first(loaded, rows)
    names = short_names({row.case: row.params for row in rows})
    lines: list[list[str]] = []
    for row in rows[:most]:
        metric, limit = row.headline, row.ceiling
        rated = metric and limit and metric.unit == limit.unit != "s"
        share = f"{'' if limit.firm else '~'}{100 * metric.value / limit.value:.0f} %" if rated and metric and limit else ""
        verdict = row.verdict
        asked = f"{sign_of(verdict)} {amount(verdict.bound, verdict.unit)}" if verdict and verdict.bound is not None else ""
        margin = percent(verdict.margin) if verdict and verdict.margin is not None else ""
        place = f"{host_of(loaded, row)} {row.device}"
        number = format_rate(metric.value, metric.unit) if metric else ""
        source = verdict.source if verdict else ""
        why = in_one_line(row), asked, margin, source, reason_of(row)
        lines.append([names[row.case], place, _word(row.word), number, _interval(row), share, *why])
    head = ["case", "where", "verdict", "result", "95 % interval", "of ceiling", "beside", "asked", "margin", "source", "why"]
    left = f"; {len(rows) - most} more are left out of this page" if len(rows) > most else ""
    styles = [STYLES.get(row.word, "") for row in rows[:most]]
    yield table(f"{counted(len(rows), 'case')}: {caption}{left}", head, lines, styles, word="verdict")


def _interval(row: Row) -> str:
    """The ends of the 95 % interval, or why there is none; empty where there is no number either."""
    metric = row.headline
    if metric is None:
        return ""
    if metric.low is not None and metric.high is not None:
        return f"{format_rate(metric.low, metric.unit)} … {format_rate(metric.high, metric.unit)}"
    why = (warnings.no_interval(readings.samples(record)) for record in row.measured)
    return f"none: {next(filter(None, why), 'times beyond reason')}"


def _machines(machines: list[Machine]) -> Iterator[str]:
    for machine in machines[:MOST_MACHINES]:
        cpu = machine.cpu
        facts = {
            "calls itself": machine.calls_itself,
            "processor": f"{cpu.model}, {cpu.cores} cores, {cpu.threads} threads",
            "memory": about(machine.memory_bytes),
            "system": " ".join(filter(None, (machine.os, machine.kernel, machine.virtual))),
            **{f"gpu {g.index}": " ".join(filter(None, (g.name, g.arch, g.uuid))) for g in machine.gpus},
**{f"port {n.name}": " ".join((n.kind, n.state, _speed(n.rate_gbit_s))) for n in machine.nics},
            "versions": ", ".join(f"{k} {v}" for k, v in machine.versions.items()),
            "settings": ", ".join(f"{k} {v}" for k, v in machine.settings.items()),
        }  # fmt: skip
        yield table(machine.host, ["part", "found"], [[k, v] for k, v in facts.items() if v])
    if len(machines) > MOST_MACHINES:
        yield paragraph(f"{len(machines) - MOST_MACHINES} more machines are left out of this page.")


def _differences(before: Before | None) -> Iterator[str]:
    """What is not as it was in the run this one is held against: parts, drivers, libraries, clocks, settings, code."""
    if before is None:
        return
    found = before.differences
    if not before.machines:
        yield paragraph(f"None of the machines here was in {before.run_id}: what differs between them is not known.", "doubt")
    elif not found:
        yield paragraph(f"Nothing: machines, drivers, libraries, settings and code are as they were in {before.run_id}.")
    if not found:
        return
    head = ["what", "kind", f"in {before.run_id}", "here", "comparable"]
    told = [[d.name, d.kind, d.a, d.b, "no" if d.bars else "yes"] for d in found]
    yield table(counted(len(found), "difference"), head, told, ["bad" if d.bars else "" for d in found], word="comparable")


def _speed(gbit_s: float | None) -> str:
    return "" if gbit_s is None else f"{gbit_s:g} Gbit/s"


def _warnings(loaded: LoadedRun, rows: Sequence[Row], ceiling: CeilingOf | None) -> Iterator[str]:
    told = [
        [doubt.name, f"{row.case} on {host_of(loaded, row)} {row.device}", doubt.detail, doubt.remedy]
        for row in rows if row.metrics
        for doubt in warnings.doubts(row.measured, ceiling)
    ]  # fmt: skip
    told += [[d.name, "the run", d.detail, d.remedy] for d in warnings.of_run(loaded.records)]
    found = [(m, f) for m in loaded.machines.values() for f in m.findings if f.state != "ok"]
    told += [[f.name, m.host, f.detail if f.state == "warning" else f"unknown: {f.detail}", f.remedy] for m, f in found]
    if told:
        left = f"; {len(told) - MOST_WARNINGS} more are left out of this page" if len(told) > MOST_WARNINGS else ""
        yield table(
            f"{counted(len(told), 'reason')} to doubt{left}", ["warning", "where", "what", "what to do"], told[:MOST_WARNINGS]
        )


def _methods(loaded: LoadedRun) -> Iterator[str]:
    yield (
        "<p>A result is the work of a case over the median of its samples, warm-up cut, all launches together; the interval "
        "holds the true median with 95 % confidence and is absent where samples are too few. Of ceiling: share of what "
        "physics allows; ~ marks an estimate. What could not be read is unknown, never fine.</p>"
    )
    run = loaded.run
    facts = {"run": run.run_id, "suite": run.suite, "started": run.started, "finished": run.finished or "not finished"}
    facts |= {"command": " ".join(run.command), "source digest": run.code}
    facts |= {f"target {number}": line for number, line in enumerate(storage.lines(loaded), 1)}
    yield table("How it was measured", ["what", "value"], [[k, v] for k, v in facts.items()])


def _gauged(loaded: LoadedRun, gauges: Sequence[Gauged]) -> Iterator[str]:
    """How well the gauge itself measures on these machines: its selftest, where one is kept."""
    if not gauges:
        yield paragraph("The gauge was not tested on these machines: run_suite.py selftest does it, and reports tell.", "dim")
        return
    told: list[list[str]] = []
    for one in gauges:
        machine = loaded.machines.get(one.machine_id)
        code = "" if one.code == loaded.run.code else ", by other code than measured this run"
        told.append(
            [
                machine.host if machine else one.machine_id,
                "; ".join(one.problems) or "nothing contradicts what is known",
                "–" if one.bias is None else percent(one.bias),
                "–" if one.overhead_s is None else format_time(one.overhead_s),
                "–" if one.tick_s is None else format_time(one.tick_s),
                "–" if one.smallest_change is None else f"{100 * one.smallest_change:.1f} %",
                one.when + code,
            ]
        )
    head = ["machine", "selftest", "largest bias", "overhead of a call", "step of the clock", "smallest change", "when"]
    yield table("The gauge, gauged by itself: known durations, injected slowdowns", head, told)
