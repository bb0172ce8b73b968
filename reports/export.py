"""A run in the formats of other tools: CSV, Markdown, JUnit XML, a Prometheus text file, pytest-benchmark's JSON.

Each is a pure function of the rows.  What another machine wrote is data in every one of them: never markup, a formula, or a
label's end.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from msgspec.structs import replace

from clustergauge import hosts
from clustergauge.loading import LoadedRun
from clustergauge.model import Planned, Record, Run
from clustergauge.units import counted, format_rate
from clustergauge.valid import printable
from reports.markdown import cell
from reports.rows import BAD, Row, worst_first
from reports.table import asked

COLUMNS = (
    "case", "device", "host", "machine_id", "launches", "verdict", "metric", "value", "unit", "low", "high", "ceiling",
    "bound", "margin", "reason", "source",
)  # fmt: skip
"""Of the CSV: numbers in bare units, empty where unknown; ``low``/``high``: the 95 % interval."""
_SUFFIX = {
    "s": "seconds", "FLOP/s": "flop_per_second", "OP/s": "op_per_second", "B/s": "bytes_per_second", "1": "ratio",
    "IO/s": "io_per_second",
    "samples/s": "samples_per_second",
    "J/FLOP": "joules_per_flop", "J/OP": "joules_per_op", "J/B": "joules_per_byte",
}  # fmt: skip
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot carry, escaped or not."""
_FAILURES = ("FAIL", "wrong")
_SKIPPED = ("skipped", "verified")


def reason_of(row: Row) -> str:
    """Why the row's word is what it is, in one line; empty where there is nothing to say."""
    said = [row.over] if row.over else []
    said += [r.reason for r in row.records if r.reason]
    said += [v.reason for v in row.verdicts if v.reason and v.verdict == row.word]
    return printable("; ".join(dict.fromkeys(said)))


def told_of(row: Row) -> str:
    """What was asked and reached where that decided the row's word, and `reason_of` it: for a reader who has no columns."""
    deciding = [v for v in row.verdicts if v.verdict == row.word]
    said = [*map(asked, deciding), reason_of(row), *(v.remark for v in deciding)]
    said += [f"source: {v.source}" for v in deciding if v.source]
    return printable("; ".join(dict.fromkeys(filter(None, said))))


def unanswered(loaded: LoadedRun) -> list[Planned]:
    """What was planned and has no record: never a pass.  What nodes owe each by itself is told by node (`Planned.hosts`)."""
    names = {machine.machine_id: machine.node for machine in loaded.machines.values()}
    done = {(r.case, r.device, r.launch) for r in loaded.records}
    done_by = {(r.case, r.device, r.launch, names.get(r.machine_id, "")) for r in loaded.records}
    found: list[Planned] = []
    for planned in loaded.run.planned:
        key = planned.case, planned.device, planned.launch
        if planned.hosts and planned.nodes == 1:
            owing = (name for name in hosts.expand(planned.hosts) if (*key, name) not in done_by)
            found += [replace(planned, hosts=name) for name in owing]
        elif key not in done:
            found.append(planned)
    return found


def _untold(loaded: LoadedRun, rows: Sequence[Row]) -> list[Planned]:
    """What has no record, but for what a row without one tells already (*not measured*): no case is counted twice."""
    told = {(row.case, row.device) for row in rows if row.word == "not measured" and not row.records}
    return [p for p in unanswered(loaded) if p.hosts or (p.case, p.device) not in told]


def owed(run: Run) -> int:
    """How many records were planned: of what nodes measure each alone, one a node."""
    return sum(len(hosts.expand(p.hosts)) if p.hosts and p.nodes == 1 else 1 for p in run.planned)


def lacking(missing: int, owed: int) -> str:
    """That so many of the records planned are not there."""
    return f"{missing} of {counted(owed, 'planned case has', 'planned cases have')} no record"


def host_of(loaded: LoadedRun, row: Row) -> str:
    """The host of the row, or the id of its machine where that is not described."""
    machine = loaded.machines.get(row.machine_id)
    return machine.host if machine else row.machine_id


# --------------------------------------------------------------------------------------------------------------------------
# tables


def to_csv(loaded: LoadedRun, rows: Sequence[Row]) -> str:
    """One line a case (RFC 4180), `COLUMNS`.  A text that a spreadsheet would compute gets a ``'`` before it."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in rows:
        told, verdict, ceiling = row.headline, row.verdict, row.ceiling
        numbers = (told.value, told.unit, told.low, told.high) if told else (None, "", None, None)
        writer.writerow(
            [
                *map(_harmless, (row.case, row.device, host_of(loaded, row), row.machine_id)),
                len(row.records), row.word, told.name if told else "", *numbers, ceiling.value if ceiling else None,
                verdict.bound if verdict else None, verdict.margin if verdict else None,
                _harmless(reason_of(row)), _harmless(verdict.source if verdict else ""),
            ]
        )  # fmt: skip
    for planned in _untold(loaded, rows):
        name, device, host = map(_harmless, (planned.case, planned.device, planned.hosts))
        writer.writerow([name, device, host, "", 0, "no record", *[""] * 8, f"launch {planned.launch} has no record", ""])
    return out.getvalue()


def to_markdown(loaded: LoadedRun, rows: Sequence[Row]) -> str:
    """A heading, the counts, and a table, the worst first."""
    count = Counter(row.word for row in rows)
    lines = [f"# ClusterGauge run {cell(loaded.run.run_id)}", ""]
    lines += [f"Suite {cell(loaded.run.suite)}, {cell(loaded.run.started)}: " + ", ".join(f"{n} {w}" for w, n in count.items())]
    if missing := len(unanswered(loaded)):
        lines += ["", f"**{lacking(missing, owed(loaded.run))}.**"]
    lines += ["", "| verdict | case | host | device | result | of ceiling | asked | why |", "|---|---|---|---|--:|--:|---|---|"]
    for row in worst_first(loaded, rows):
        told, ceiling = row.headline, row.ceiling
        number = format_rate(told.value, told.unit) if told else ""
        share = f"{100 * told.value / ceiling.value:.0f} %" if told and ceiling and ceiling.unit == told.unit != "s" else ""
        word = f"**{row.word}**" if row.word in BAD else row.word
        texts = [cell(t) for t in (row.case, host_of(loaded, row), row.device)]
        bound = asked(row.verdict, named=not told or told.name != row.verdict.metric) if row.verdict else ""
        lines.append(f"| {' | '.join([word, *texts, number, share, *map(cell, (bound, reason_of(row)))])} |")
    return "\n".join([*lines, *(f"\n{cell(note)}" for note in loaded.notes)]) + "\n"


def _harmless(text: str) -> str:
    """A text as a spreadsheet takes it for text (OWASP: formula injection)."""
    plain = printable(text)
    return f"'{plain}" if plain.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") and plain.strip() else plain


# --------------------------------------------------------------------------------------------------------------------------
# JUnit


def to_junit(loaded: LoadedRun, rows: Sequence[Row]) -> str:
    """JUnit XML.  Failures: *FAIL* and wrong results; errors: whatever else must be looked at, and what has no record.

    Skipped: what has no time.  ``time``: seconds inside the samples of all launches.
    """
    body: list[str] = []
    count: Counter[str] = Counter()
    for row in rows:
        kind = "failure" if row.word in _FAILURES else "error" if row.word in BAD else "skipped" if row.word in _SKIPPED else ""
        name = f"{host_of(loaded, row)} {row.device}".strip().replace(".", "_")
        body += _testcase(name, row.case, kind, row.word, told_of(row) or row.word, sum(map(_seconds, row.records)))
        count[kind] += 1
    untold = _untold(loaded, rows)
    for planned in untold:
        why = f"launch {planned.launch} was planned and has no record"
        place = f"{planned.hosts} {planned.device}".strip().replace(".", "_")
        body += _testcase(place, planned.case, "error", "no record", why, 0.0)
        count["error"] += 1
    totals = f'tests="{len(rows) + len(untold)}" failures="{count["failure"]}" errors="{count["error"]}"'
    suite = f'<testsuite name={_attribute(f"clustergauge {loaded.run.suite}")} {totals} skipped="{count["skipped"]}"'
    started = _attribute(loaded.run.started.removesuffix("Z"))
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<testsuites>", f"{suite} timestamp={started}>", *body]
    return "\n".join([*lines, "</testsuite>", "</testsuites>"]) + "\n"


def _testcase(place: str, name: str, kind: str, word: str, why: str, seconds: float) -> list[str]:
    opened = f'<testcase classname={_attribute(place or "run")} name={_attribute(name)} time="{seconds:.6f}"'
    if not kind:
        return [f"{opened}/>"]
    typed = "" if kind == "skipped" else f" type={_attribute(word)}"
    told = f"<{kind} message={_attribute(why)}{typed}>{escape(why)}</{kind}>"
    return [f"{opened}>{told}</testcase>"]


def _attribute(text: str) -> str:
    return quoteattr(_NOT_XML.sub("�", text))


def _seconds(record: Record) -> float:
    taken = record.measurement
    return sum(taken.samples_s) * taken.iterations_per_sample if taken else 0.0


# --------------------------------------------------------------------------------------------------------------------------
# Prometheus


def to_prometheus(loaded: LoadedRun, rows: Sequence[Row]) -> str:
    """Text exposition format 0.0.4, for the text file collector of the node exporter; every family is together, no timestamps.

    A metric is a gauge named after its unit (``clustergauge_busbw_bytes_per_second``), with the ends of its interval beside it.
    ``clustergauge_case`` is 1 for the word of each case; one that is *invalid* has no other.
    """
    families: dict[str, list[str]] = {}

    def put(name: str, labels: Mapping[str, str], value: float) -> None:
        told = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        families.setdefault(name, []).append(f"{name}{{{told}}} {value!r}")

    for row in rows:
        place = {"case": row.case, "device": row.device, "host": host_of(loaded, row), "machine": row.machine_id}
        put("clustergauge_case", {**place, "verdict": row.word}, 1)
        for metric in row.believable:
            name = f"clustergauge_{metric.name}_{_SUFFIX[metric.unit]}"
            for end, value in (("", metric.value), ("_low", metric.low), ("_high", metric.high)):
                if value is not None:
                    put(name + end, place, value)
    run = {"run": loaded.run.run_id, "suite": loaded.run.suite, "code": loaded.run.code}
    put("clustergauge_run_info", run, 1)
    put("clustergauge_planned_without_record", {"run": loaded.run.run_id}, len(unanswered(loaded)))
    lines = [line for name in sorted(families) for line in (f"# TYPE {name} gauge", *families[name])]
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


# --------------------------------------------------------------------------------------------------------------------------
# pytest-benchmark


def to_pytest_benchmark(loaded: LoadedRun, rows: Sequence[Row]) -> str:
    """What ``pytest-benchmark compare`` reads: cases with a believed time, statistics over the samples of all launches (s)."""
    machines = [loaded.machines[name] for name in sorted(loaded.machines)]
    first = machines[0] if machines else None
    document = {
        "machine_info": {
            "node": first.host if first else "", "machine": "", "system": first.os if first else "",
            "release": first.kernel if first else "", "python_version": first.versions.get("python", "") if first else "",
            "cpu": {"brand_raw": first.cpu.model, "count": first.cpu.threads} if first else {},
        },
        "commit_info": {"id": loaded.run.code, "dirty": False, "branch": "", "time": loaded.run.started},
        "benchmarks": [_benchmark(loaded, row) for row in rows if row.believable],
        "datetime": loaded.run.started,
        "version": "5.1.0",
    }  # fmt: skip
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _benchmark(loaded: LoadedRun, row: Row) -> dict[str, object]:
    taken = [r.measurement for r in row.measured if r.measurement]
    times = sorted(t for m in taken for t in m.samples_s[m.warmup_cut :])
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    mean, deviation = statistics.fmean(times), statistics.stdev(times) if len(times) > 1 else 0.0
    low, high = q1 - 1.5 * (q3 - q1), q3 + 1.5 * (q3 - q1)
    outside, far = sum(not low <= t <= high for t in times), sum(abs(t - mean) > deviation for t in times)
    where = f"{host_of(loaded, row)} {row.device}"
    return {
        "group": row.case, "name": f"{row.case} [{where}]", "fullname": f"{row.case} [{where}]", "params": None, "param": None,
        "extra_info": {"verdict": row.word} | {m.name: {"value": m.value, "unit": m.unit} for m in row.metrics},
        "options": {"disable_gc": False, "warmup": True},
        "stats": {
            "min": times[0], "max": times[-1], "mean": mean, "stddev": deviation, "rounds": len(times), "median": median,
            "iqr": q3 - q1, "q1": q1, "q3": q3, "iqr_outliers": outside, "stddev_outliers": far, "outliers": f"{far};{outside}",
            "ld15iqr": min(t for t in times if t >= low), "hd15iqr": max(t for t in times if t <= high), "ops": 1 / mean,
            "total": sum(times), "iterations": max(m.iterations_per_sample for m in taken),
        },
    }  # fmt: skip


WRITERS: Mapping[str, Callable[[LoadedRun, Sequence[Row]], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "junit": to_junit,
    "prom": to_prometheus,
    "pytest-benchmark": to_pytest_benchmark,
}
"""By name of the format."""
