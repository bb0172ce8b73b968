"""A run as one HTML page: no script, no network, light and dark, for screen, paper and screen readers.

Everything a run folder says goes through ``html.escape``; the policy in the head forbids whatever might slip through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from clustergauge import stats, sweeps, warnings
from clustergauge.loading import LoadedRun
from clustergauge.model import Machine, PairFindings
from clustergauge.pair_fit import Array
from clustergauge.units import format_rate, format_size, format_time
from clustergauge.valid import printable
from reports import charts
from reports.charts import Point, table
from reports.export import host_of, owed, reason_of, unanswered
from reports.layout import short_names
from reports.rows import BAD, Row
from reports.table import amount, percent, sign_of

if TYPE_CHECKING:
    from clustergauge.accept import CeilingOf

MOST_ROWS, MOST_CHARTS, MOST_SERIES, MOST_MACHINES, MOST_ENDPOINTS, MOST_WARNINGS = 2000, 24, 12, 50, 48, 200
"""What a page holds, so that it stays small; it says what it leaves out."""
QUANTILES = 100
"""Points of a distribution."""
LONGEST = 2000
"""Characters of one text."""
UNTIMED = ("verified", "skipped")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--dim:#59626d;--rule:#d5dae0;--bad:#b3261e;--doubt:#7a5200;--good:#146c2e;
--s0:#0b62b8;--s1:#b04a00;--s2:#146c2e;--s3:#8a2a8a;--s4:#00707a;--s5:#7a5200}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--ink:#e8ebef;--dim:#a3adb8;--rule:#39414b;--bad:#ff8a80;--doubt:#f2c14e;
--good:#7fd99a;--s0:#6db3ff;--s1:#ffa15c;--s2:#7fd99a;--s3:#e39be3;--s4:#5fd3dd;--s5:#f2c14e}}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--bg);color:var(--ink);font:1rem/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin-top:2rem}
.banner{border-left:.5rem solid;padding:.6rem 1rem;font-size:1.1rem}.bad{color:var(--bad)}.doubt{color:var(--doubt)}
.good{color:var(--good)}.dim,.axis{color:var(--dim)}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;width:100%}caption{text-align:left;color:var(--dim);padding:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--rule);font-weight:400;
white-space:nowrap}thead th{font-weight:600}td{font-variant-numeric:tabular-nums}
tbody th{white-space:normal;overflow-wrap:anywhere;min-width:11rem}
td.text{white-space:normal;overflow-wrap:anywhere;min-width:12rem}
figure{margin:1.2rem 0}figcaption{font-weight:600;overflow-wrap:anywhere}svg{display:block;width:100%;max-width:44rem;height:auto}
svg.square{max-width:34rem}svg text{font-size:12px;fill:var(--ink)}svg text.on{fill:var(--bg)}.line{fill:none;stroke-width:2}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.cell{fill:var(--bad)}.unknown{fill:none;stroke:var(--dim);stroke-dasharray:2 2}
.keys{list-style:none;padding:0;font-size:.875rem}.keys li{overflow-wrap:anywhere}
svg.key{display:inline-block;width:26px;height:8px}
@media print{body{max-width:none;padding:0}figure,tr{break-inside:avoid}.wide{overflow:visible}}
"""


def html_of(loaded: LoadedRun, rows: Sequence[Row], found: Sequence[PairFindings] = (), ceiling: CeilingOf | None = None) -> str:
    """The whole page.  ``found``: what transfers between pairs say; ``ceiling``: what physics allows a metric."""
    title = f"ClusterGauge run {loaded.run.run_id}"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>",
        *_banner(loaded, rows),
        *_section("What must be looked at", _results(loaded, [r for r in rows if r.word in BAD], "bad cases, the worst first")),
        *_section("Results", _results(loaded, [r for r in rows if r.word not in (*BAD, *UNTIMED)], "cases with a number")),
        *_section("Not timed", _results(loaded, [r for r in rows if r.word in UNTIMED], "cases skipped, or checked alone")),
        *_section("Machines", _machines(list(loaded.machines.values()))),
        *_section("By size", _sizes(loaded, rows)),
        *_section("Between pairs", _pairs(loaded, found)),
        *_section("Distributions of times", _distributions(loaded, rows)),
        *_section("Warnings", _warnings(loaded, rows, ceiling)),
        *_section("Methods", _methods(loaded)),
        "</main></body></html>\n",
    ]
    return "\n".join(parts)


def _section(title: str, body: Iterator[str]) -> Iterator[str]:
    inside = list(body)
    if inside:
        yield f"<section><h2>{escape(title)}</h2>"
        yield from inside
        yield "</section>"


def _text(text: str) -> str:
    plain = printable(text)
    return plain if len(plain) <= LONGEST else plain[:LONGEST] + "…"


def _banner(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    count = Counter(row.word for row in rows)
    missing = len(unanswered(loaded))
    bad = sum(count[word] for word in BAD)
    failed = any(count[word] for word in BAD if word != "inconclusive")
    style = "bad" if failed else "doubt" if bad or missing or not count["pass"] else "good"
    lead = (
        f"{bad} of {len(rows)} cases must be looked at" if bad
        else "Nothing failed, but the run is not whole" if missing
        else "All that was asked is met" if count["pass"] else "Nothing was held against a criterion"
    )  # fmt: skip
    words = " · ".join(f"{n} {_word(word)}" for word, n in count.most_common()) or "no case was measured"
    yield f'<p class="banner {style}" role="status"><strong>{lead}</strong><br>{escape(words)}</p>'
    if missing:
        yield f'<p class="doubt">{missing} of {owed(loaded.run)} planned cases have no record.</p>'
    for name, why in loaded.run.left_out.items():
        yield f'<p class="doubt">node {escape(_text(name))}: {escape(_text(why))}</p>'
    for note in loaded.notes:
        yield f'<p class="doubt">{escape(_text(note))}</p>'


def _word(word: str) -> str:
    return "ok (no criterion)" if word == "unreferenced" else word


def _results(loaded: LoadedRun, rows: list[Row], caption: str) -> Iterator[str]:
    if not rows:
        return
    rows = sorted(rows, key=lambda r: BAD.index(r.word) if r.word in BAD else len(BAD))
    names = short_names({row.case: row.params for row in rows})
    told: list[list[str]] = []
    for row in rows[:MOST_ROWS]:
        metric, limit = row.headline, row.ceiling
        rated = metric and limit and metric.unit == limit.unit != "s"
        share = f"{'' if limit.firm else '~'}{100 * metric.value / limit.value:.0f} %" if rated and metric and limit else ""
        interval = (
            f"{format_rate(metric.low, metric.unit)} … {format_rate(metric.high, metric.unit)}"
            if metric and metric.low is not None and metric.high is not None else ""
        )  # fmt: skip
        verdict = row.verdict
        asked = f"{sign_of(verdict)} {amount(verdict.bound, verdict.unit)}" if verdict and verdict.bound is not None else ""
        margin = percent(verdict.margin) if verdict and verdict.margin is not None else ""
        place = f"{host_of(loaded, row)} {row.device}"
        number = format_rate(metric.value, metric.unit) if metric else ""
        source = verdict.source if verdict else ""
        told.append(
            [names[row.case], place, _word(row.word), number, interval, share, asked, margin, source, _text(reason_of(row))]
        )
    head = ["case", "where", "verdict", "result", "95 % interval", "of ceiling", "asked", "margin", "source", "why"]
    kept = [n for n in range(len(head)) if n < 4 or any(line[n] for line in told)]  # a column that is empty says nothing
    head, told = [head[n] for n in kept], [[line[n] for n in kept] for line in told]
    left = f"; {len(rows) - MOST_ROWS} more are left out of this page" if len(rows) > MOST_ROWS else ""
    yield table(f"{len(rows)} {caption}{left}", head, [[_text(cell) for cell in line] for line in told])


def _machines(machines: list[Machine]) -> Iterator[str]:
    for machine in machines[:MOST_MACHINES]:
        cpu = machine.cpu
        facts = {
            "processor": f"{cpu.model}, {cpu.cores} cores, {cpu.threads} threads",
            "memory": format_size(machine.memory_bytes),
            "system": " ".join(filter(None, (machine.os, machine.kernel, machine.virtual))),
            **{f"gpu {g.index}": " ".join(filter(None, (g.name, g.arch, g.uuid))) for g in machine.gpus},
**{f"port {n.name}": " ".join((n.kind, n.state, _speed(n.rate_gbit_s))) for n in machine.nics},
            "versions": ", ".join(f"{k} {v}" for k, v in machine.versions.items()),
            "settings": ", ".join(f"{k} {v}" for k, v in machine.settings.items()),
        }  # fmt: skip
        yield table(_text(machine.host), ["part", "found"], [[_text(k), _text(v)] for k, v in facts.items() if v])
    if len(machines) > MOST_MACHINES:
        yield f"<p>{len(machines) - MOST_MACHINES} more machines are left out of this page.</p>"


def _speed(gbit_s: float | None) -> str:
    return "" if gbit_s is None else f"{gbit_s:g} Gbit/s"


def _sizes(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Cases that differ in their size alone are one line; those of one probe, metric and device one chart."""
    groups: dict[tuple[str, str, str, str], dict[str, list[Point]]] = {}
    for row in rows:
        size, metric = row.params.get("size"), row.headline
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0 or not metric or metric.value <= 0:
            continue
        where = f"{host_of(loaded, row)} {row.device}"
        rest = " ".join(str(v) for k, v in row.params.items() if k != "size")
        key = (row.records[0].probe, metric.name, metric.unit, where)
        groups.setdefault(key, {}).setdefault(_text(rest), []).append((float(size), metric.value))
    drawn = 0
    for (probe, name, unit, where), series in groups.items():
        shown = {rest or probe: sorted(points) for rest, points in series.items() if len(points) > 2}
        for first in range(0, len(shown), MOST_SERIES):
            drawn += 1
            if drawn <= MOST_CHARTS:
                part = dict(list(shown.items())[first : first + MOST_SERIES])
                formats = (_size, partial(format_rate, unit=unit))
                yield charts.lines(_text(f"{probe} on {where}: {name}"), part, ("size", name), formats)
    if drawn > MOST_CHARTS:
        yield f"<p>{drawn - MOST_CHARTS} more charts are left out of this page; the tables above hold their numbers.</p>"


def _size(value: float) -> str:
    step = 0
    while value >= 1023.5 and step < 5:
        value, step = value / 1024, step + 1
    return f"{value:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[step]}"


def _pairs(loaded: LoadedRun, found: Sequence[PairFindings]) -> Iterator[str]:
    for one in found[:MOST_CHARTS]:
        key = (one.machine_id, one.case, one.device)
        records = [r for r in loaded.records if (r.machine_id, r.case, r.device) == key and sweeps.is_sweep(r)]
        fresh = [r for r in records if r.confirms] or records
        for suspect in one.suspects:
            style = "bad" if suspect.confirmed else "doubt"
            yield f'<p class="{style}">{escape(_text(sweeps.sentence(suspect)))}</p>'
        if not 1 < len(one.endpoints) <= MOST_ENDPOINTS:
            yield f"<p>{escape(_text(one.case))}: {len(one.endpoints)} endpoints, not drawn.</p>"
            continue
        middle = _median_pass(sweeps.sweep_of(fresh).bandwidth)
        known = [value for line in middle for value in line if value is not None]
        if not known:
            continue
        typical = stats.median(known)
        shares = [[None if value is None else value / typical for value in line] for line in middle]
        yield charts.heat(_text(f"{one.case}, of the median {format_rate(typical, 'B/s')}"), [*map(_text, one.endpoints)], shares)


def _median_pass(bandwidth: Array) -> list[list[float | None]]:
    """The median over the passes of each pair, ``None`` where no pass has a number."""
    count = bandwidth.shape[1]
    found: list[list[float | None]] = [[None] * count for _ in range(count)]
    for i, j in np.ndindex(count, count):
        known = [float(value) for value in bandwidth[:, i, j] if np.isfinite(value)]
        found[i][j] = stats.median(known) if known else None
    return found


def _distributions(loaded: LoadedRun, rows: Sequence[Row]) -> Iterator[str]:
    """Bad cases first; the share of samples that took no longer."""
    timed = sorted((r for r in rows if r.headline), key=lambda r: r.word not in BAD)
    for row in timed[:MOST_CHARTS]:
        taken = [r.measurement for r in row.measured if r.measurement]
        times = np.asarray([t for m in taken for t in m.samples_s[m.warmup_cut :]])
        shares = np.linspace(0, 1, min(len(times), QUANTILES))
        points = [(float(t), float(s)) for t, s in zip(np.quantile(times, shares), shares, strict=True)]
        title = _text(f"{row.case} on {host_of(loaded, row)} {row.device}, {len(times)} samples")
        yield charts.lines(title, {"all launches": points}, ("time", "share"), (format_time, _percent), share=True)
    if len(timed) > MOST_CHARTS:
        yield f"<p>{len(timed) - MOST_CHARTS} more cases are not drawn.</p>"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


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
        lines = [[_text(cell) for cell in line] for line in told[:MOST_WARNINGS]]
        yield table(f"{len(told)} reasons to doubt{left}", ["warning", "where", "what", "what to do"], lines)


def _methods(loaded: LoadedRun) -> Iterator[str]:
    yield (
        "<p>A result is the work of a case over the median of its samples, warm-up cut, all launches together; the interval "
        "holds the true median with 95 % confidence and is absent where samples are too few. Of ceiling: share of what "
        "physics allows; ~ marks an estimate. What could not be read is unknown, never fine.</p>"
    )
    run = loaded.run
    facts = {"run": run.run_id, "suite": run.suite, "started": run.started, "finished": run.finished or "not finished"}
    facts |= {"command": " ".join(run.command), "source digest": run.code}
    yield table("How it was measured", ["what", "value"], [[k, _text(v)] for k, v in facts.items()])
