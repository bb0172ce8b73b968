"""What makes a document of a run folder believable: names, text, numbers, and that its parts belong together.  No file.

Types and unknown fields are the business of strict parsing (`model`); here is what types cannot say.  Names (run, machine,
case, device, host, keys of dictionaries) must be printable and are refused otherwise; free text is cleaned by `clean`, so that
nothing another machine wrote can steer a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from clustergauge import hosts
from clustergauge.errors import UsageError
from clustergauge.model import Data, Judgement, Machine, Measurement, Planned, Record, Run, Scalar
from clustergauge.probe import Case

Key = tuple[str, str, int]
"""Case, device, launch: what a run plans once."""
D = TypeVar("D", bound=Data)

MOST = 10**24
"""No number is larger: 10²⁴ FLOP are twelve days of an exaflop machine, and sums and squares of such are still floats."""
SHORTEST_S, LONGEST_S = 1e-15, 1e9
"""No time is shorter or longer (a femtosecond, thirty years): rates and logarithms of what lies between are finite."""
MOST_RANKS = 10**7
NAME_LENGTH = 1000
TEXT_LENGTH = 100_000
"""Longest free text, in characters; what is longer belongs in a log."""
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
"""What an id must be to name a file or a folder."""
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", re.ASCII)
"""UTC, as records write it."""
TIME_LENGTH = 30
_AMOUNTS = ("flops", "ops", "bytes_read", "bytes_written", "ios", "samples", "message_bytes")


class Invalid(ValueError):
    """A document that cannot be believed; the text names the field and what is wrong with it."""


# --------------------------------------------------------------------------------------------------------------------------
# text


def printable(text: str) -> str:
    """The text as one line that cannot steer a terminal: white space becomes blanks, other unprintable characters ``�``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c.isspace() else "�" for c in text)


def shown(text: str, most: int = 120) -> str:
    """Text of a file as an error message quotes it: printable, in quotes, at most ``most`` characters of it."""
    return repr(printable(text if len(text) <= most else text[:most] + "…"))


def clean(document: D) -> D:
    """The document with its free text made `printable`.

    Raises `Invalid` for a text of more than `TEXT_LENGTH` characters and for a key of a dictionary that is not printable.
    """
    return msgspec.convert(_clean(msgspec.to_builtins(document)), type(document))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        if len(value) > TEXT_LENGTH:
            raise Invalid(f"a text of {len(value)} characters (at most {TEXT_LENGTH}): {shown(value, 40)}")
        return printable(value)
    if isinstance(value, list):
        if value and isinstance(value[0], float):  # samples: nothing to clean, and many
            return value  # pyright: ignore[reportUnknownVariableType]
        return [_clean(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        for key in value:  # pyright: ignore[reportUnknownVariableType]
            if _clean(key) != key:
                raise Invalid(f"key {shown(key)} is not printable")  # pyright: ignore[reportUnknownArgumentType]
        return {k: _clean(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return value


def is_file_name(text: str) -> bool:
    """Whether an id can safely name a file or folder: `FILE_NAME`."""
    return FILE_NAME.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return 0 < len(text) <= NAME_LENGTH and text.isprintable()


def _name(field: str, text: str, *, empty: bool = False) -> None:
    if not (_is_name(text) or (empty and not text)):
        raise Invalid(f"{field} {shown(text)} is not a name (1 to {NAME_LENGTH} printable characters)")


def _time(field: str, text: str) -> None:
    if len(text) > TIME_LENGTH or not _is_time(text):
        raise Invalid(f"{field} {shown(text)} is not a time (2026-11-23T06:30:00Z)")


@lru_cache(256)  # cases of a fleet begin in the same seconds
def _is_time(text: str) -> bool:
    try:
        return TIME.fullmatch(text) is not None and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


# --------------------------------------------------------------------------------------------------------------------------
# numbers


def _count(field: str, value: int, least: int = 0, most: int = MOST) -> None:
    if not least <= value <= most:
        raise Invalid(f"{field} is {value if abs(value) < MOST else 'beyond 10²⁴'}: must be {least} or more, and believable")


def _finite(field: str, values: Collection[float]) -> None:
    if not values or (min(values) >= 0 and sum(values) <= MOST):  # so each is, and none is not a number
        return
    for index, value in enumerate(values):
        if not abs(value) <= MOST:
            raise Invalid(f"{field}[{index}] is {value}: not a number, or beyond ±10²⁴")


def _positive(field: str, values: list[float]) -> None:
    if not values or (min(values) >= SHORTEST_S and sum(values) <= LONGEST_S):  # so each is, and none is not a number
        return
    for index, value in enumerate(values):
        if not SHORTEST_S <= value <= LONGEST_S:
            raise Invalid(f"{field}[{index}] is {value}: a time is more than 0 s, and believable")


def _scalars(field: str, values: Mapping[str, Scalar]) -> None:
    for key, value in values.items():
        if not isinstance(value, str) and value is not None and not -MOST <= value <= MOST:
            words = f"is {value}: not a number, or beyond" if isinstance(value, float) else "is beyond"
            raise Invalid(f"{field}[{shown(key)}] {words} ±10²⁴")


# --------------------------------------------------------------------------------------------------------------------------
# documents


def key_of(document: Record | Planned) -> Key:
    """What identifies a planned case, and the record that answers it on one machine."""
    return document.case, document.device, document.launch


def check_run(run: Run) -> dict[Key, Planned]:
    """The planned cases by key.  Raises `Invalid`."""
    check_heading(run)
    return check_planned(run.planned)


def check_heading(run: Run) -> None:
    """`check_run` but for what is planned."""
    if not is_file_name(run.run_id):
        raise Invalid(f"run_id {shown(run.run_id)} cannot name a folder (letters, digits, '.', '_', '-')")
    _time("started", run.started)
    if run.finished:
        _time("finished", run.finished)
    _scalars("settings", run.settings)
    for name, why in run.left_out.items():
        _name("left_out", name)
        _name(f"left_out[{shown(name)}]", printable(why)[:NAME_LENGTH], empty=True)


def check_planned(planned_cases: Sequence[Planned]) -> dict[Key, Planned]:
    """The planned cases of a run by key.  Raises `Invalid`."""
    index: dict[Key, Planned] = {}
    planned_for: dict[Key, set[str]] = {}
    for number, planned in enumerate(planned_cases):
        where = f"planned[{number}]"
        _case(f"{where}.", planned)
        _name(f"{where}.module", planned.module, empty=True)
        _positive(f"{where}.budget_s", [planned.budget_s])
        _positive(f"{where}.timeout_s", [planned.timeout_s])
        _name(f"{where}.in_turn", planned.in_turn, empty=True)
        _count(f"{where}.nodes", planned.nodes, 1, hosts.MOST_HOSTS)
        try:
            names = set(hosts.expand(planned.hosts)) if planned.hosts else {""}
        except UsageError as error:
            raise Invalid(f"{where}.{error}") from None
        index.setdefault(key_of(planned), planned)
        taken = planned_for.setdefault(key_of(planned), set())
        before = len(taken)
        taken |= names
        if len(taken) < before + len(names) or ("" in taken and len(taken) > 1):
            raise Invalid(f"{where} repeats {shown(planned.case, 300)} on {planned.device}, launch {planned.launch}")
    return index


def check_record(record: Record, run_id: str, planned: Mapping[Key, Planned], machines: Collection[str]) -> None:
    """Raises `Invalid` unless the record is sound in itself and belongs to this run and one of its machines."""
    if record.run_id != run_id:
        raise Invalid(f"run_id {shown(record.run_id)} is of another run (this is {run_id})")
    plan = planned.get(key_of(record))
    if plan is None or record.probe != plan.probe or msgspec.json.encode(record.params) != msgspec.json.encode(plan.params):
        _case("", record)  # a planned case has been through this
        raise Invalid(f"case {shown(record.case, 300)} on {record.device}, launch {record.launch}, is not planned in run.json")
    _count("ranks", record.ranks, 1, MOST_RANKS)
    if record.machine_id not in machines:
        raise Invalid(f"machine_id {shown(record.machine_id)} has no description in machines/")
    _time("started", record.started)
    counters = record.counters
    _scalars("settings", record.settings)
    _scalars("telemetry", record.telemetry)
    if counters.path or counters.health or counters.device_bytes:
        _scalars("counters.path", counters.path)
        _scalars("counters.health", counters.health)
        for name, count in counters.device_bytes.items():
            _count(f"counters.device_bytes[{shown(name)}]", count)
    _placement(record)
    _result(record)


def check_machine(machine: Machine) -> None:
    """Raises `Invalid` unless the machine can be named and counted."""
    if not is_file_name(machine.machine_id):
        raise Invalid(f"machine_id {shown(machine.machine_id)} cannot name a file (letters, digits, '.', '_', '-')")
    _name("host", machine.host)
    _count("memory_bytes", machine.memory_bytes)
    _count("cpu.cores", machine.cpu.cores)
    _count("cpu.threads", machine.cpu.threads)
    _count("cpu.llc_bytes", machine.cpu.llc_bytes or 0)
    _scalars("settings", machine.settings)
    for number, gpu in enumerate(machine.gpus):
        _count(f"gpus[{number}].index", gpu.index)
        _count(f"gpus[{number}].memory_bytes", gpu.memory_bytes or 0)
    clocks = [machine.cpu.clock_max_mhz, *(gpu.sm_clock_max_mhz for gpu in machine.gpus)]
    others = [*(gpu.power_limit_w for gpu in machine.gpus), *(nic.rate_gbit_s for nic in machine.nics)]
    _finite("clocks, power limits and rates", [value for value in [*clocks, *others] if value is not None])


def check_judgement(judgement: Judgement, run_id: str) -> None:
    """Raises `Invalid` unless it is about this run and names what can be named."""
    if judgement.run_id != run_id:
        raise Invalid(f"run_id {shown(judgement.run_id)} is of another run (this is {run_id})")
    if judgement.baseline and not is_file_name(judgement.baseline.run_id):
        raise Invalid(f"baseline {shown(judgement.baseline.run_id)} cannot name a folder")
    for number, verdict in enumerate(judgement.verdicts):
        numbers = (verdict.value, verdict.bound, verdict.margin)
        _finite(f"verdicts[{number}]", [value for value in numbers if value is not None])


def _case(where: str, document: Record | Planned) -> None:
    _name(f"{where}case", document.case)
    _name(f"{where}probe", document.probe)
    _name(f"{where}device", document.device)
    _count(f"{where}launch", document.launch, 0, 10**9)
    _count(f"{where}ranks", document.ranks, 1, MOST_RANKS)
    _scalars(f"{where}params", document.params)
    own = Case(document.probe, "", document.params).id
    if own != document.case:
        raise Invalid(f"{where}case {shown(document.case, 300)} does not follow from its probe and params ({shown(own, 300)})")


def _placement(record: Record) -> None:
    ranks: set[int] = set()
    for number, place in enumerate(record.placement):
        if not (_is_name(place.host) and _is_name(place.device)):
            _name(f"placement[{number}].host", place.host)
            _name(f"placement[{number}].device", place.device)
        if not 0 <= place.rank < record.ranks or place.rank in ranks:
            rank = place.rank if abs(place.rank) < MOST else "…"
            raise Invalid(f"placement[{number}].rank {rank} is not one of {record.ranks} ranks, or is given twice")
        ranks.add(place.rank)


def _result(record: Record) -> None:
    """Work and times are sound, and there are such where the status says so."""
    work, measured = record.workload, record.measurement
    if work:
        amounts = (work.flops, work.ops, work.bytes_read, work.bytes_written, work.ios, work.samples, work.message_bytes)
        if min(amounts) < 0 or max(amounts) > MOST:
            for field, amount in zip(_AMOUNTS, amounts, strict=True):
                _count(f"workload.{field}", amount)
    if measured:
        _measurement(measured)
    if record.status == "ok":
        if not work or not measured:
            raise Invalid(f"status is ok but there is no {'measurement' if work else 'workload'}")
        if measured.warmup_cut >= len(measured.samples_s):
            raise Invalid(f"status is ok but none of {len(measured.samples_s)} samples is left after the warm-up")
    if measured and record.status in ("verified", "skipped"):
        raise Invalid(f"status is {record.status} but there is a measurement")


def _measurement(measured: Measurement) -> None:
    count = len(measured.samples_s)
    _count("measurement.iterations_per_sample", measured.iterations_per_sample, 1)
    _count("measurement.warmup_cut", measured.warmup_cut)
    if measured.warmup_cut > count:
        raise Invalid(f"measurement.warmup_cut is {measured.warmup_cut} of {count} samples")
    if len(measured.sample_start_s) not in (0, count):
        raise Invalid(f"measurement.sample_start_s has {len(measured.sample_start_s)} values for {count} samples")
    _positive("measurement.samples_s", measured.samples_s)
    _finite("measurement.sample_start_s", measured.sample_start_s)
    _finite("measurement.arrival_skew_s", measured.arrival_skew_s)
    if measured.loop_mean_s is not None:
        _positive("measurement.loop_mean_s", [measured.loop_mean_s])
    for name, series in measured.series.items():
        _finite(f"measurement.series[{shown(name)}]", series.values)
