"""From a suite to pytest-benchmark: plans, measures in workers of our own, and hands over samples that are already taken.

pytest-benchmark times a function itself, between two readings of a timer; a timer can be given with its own marker.  Ours is a
`Tape`: it plays back a case's samples, so that what lands in its statistics is what our clock measured, to the last bit, and
nothing private of the plugin is touched.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from clustergauge import accept, ceilings, code, metrics, plan, store, warnings
from clustergauge.errors import UsageError
from clustergauge.launch import Means
from clustergauge.model import Machine, Planned, Record, Run
from clustergauge.run import Progress, carry_out, now_text
from clustergauge.supervise import Supervisor
from clustergauge.valid import check_record, key_of

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "collectives", "storage_io")
SWEEP = ("-P", "-m", "storage_io.workspace")


@dataclass
class Tape:
    """A timer that plays back samples: it is read at the start of each round (0) and at its end (the sample)."""

    readings: list[float] = field(default_factory=list[float])

    def load(self, samples: Sequence[float]) -> None:
        """From now on, these."""
        self.readings = [reading for sample in reversed(samples) for reading in (sample, 0.0)]

    def __call__(self) -> float:
        """The next reading; ``IndexError`` when all are played."""
        return self.readings.pop()


def probes(more: Sequence[str] = ()) -> Mapping[str, plan.Probe]:
    """The probes of this checkout, and those of other modules."""
    return plan.load_probes([name for folder in FOLDERS for name in importlib.import_module(folder).PROBES] + list(more))


def suite_path(name: str) -> Path:
    """A suite of ours by name, or a file."""
    path = ROOT / "suites" / f"{name}.toml"
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.toml")))
        raise UsageError(f"--suite {name!r}: there are {known}; or name a .toml file")
    return path


@dataclass
class _Keeper:
    """Believes no record that no run folder would hold; keeps the logs of failed cases for the test report."""

    planned: Planned
    run_id: str
    machine_id: str
    logs: dict[str, str] = field(default_factory=dict[str, str])

    def append(self, record: Record) -> None:
        """Kept in the progress.  Raises `Invalid`."""
        check_record(record, self.run_id, {key_of(self.planned): self.planned}, [self.machine_id])

    def write_log(self, name: str, text: str) -> str:
        """Keep a text; its name."""
        self.logs[name] = text
        return name

    def write_file(self, name: str, content: bytes) -> str:
        """Files of crashed ranks are not kept."""
        return name


class _Silent:
    """Nobody watches."""

    def start(self, total: int, seconds: float) -> None:
        """So many cases begin."""

    def case(self, planned: Planned) -> None:
        """A case starts."""

    def done(self, record: Record) -> None:
        """A case ended."""

    def stop(self) -> None:
        """No more."""


class Lane:
    """One supervisor for all cases of a session, started with the first."""

    def __init__(self, planned: Sequence[Planned], here: Machine, launcher: str = "", python_path: Sequence[str] = ()) -> None:
        self.planned = {name_of(p): p for p in planned}
        self._supervisor = Supervisor(Means(launcher, tuple(python_path)), sweep=[sys.executable, *SWEEP])
        self._here = here
        self._run = Run(
            run_id=store.new_run_id(),
            started=now_text(),
            command=["pytest"],
            suite="bench",
            code=code.digest(),
            planned=list(planned),
        )

    def measure(self, name: str, check_only: bool) -> tuple[Record, str]:
        """One case, measured or only checked: its record, and the log of one that failed."""
        planned = msgspec.structs.replace(self.planned[name], check_only=check_only)
        keeper, progress = _Keeper(planned, self._run.run_id, self._here.machine_id), Progress()
        carry_out(keeper, self._run, [planned], self._supervisor, self._here, _Silent(), progress)
        (record,) = progress.records
        return record, "\n".join(keeper.logs.values())

    def describe(self, record: Record) -> tuple[dict[str, Any], str]:
        """What goes into ``extra_info`` of a measured case, and why its number cannot be true (empty: nothing says so)."""
        return describe(record, self._here)

    @property
    def notes(self) -> list[str]:
        """What a person should hear at the end of the session."""
        return self._supervisor.notes

    def close(self) -> None:
        """End every process."""
        self._supervisor.close()


def name_of(planned: Planned) -> str:
    """The id of a case in pytest: ``matmul/backend=torch/dtype=fp32/shape=1024@cpu:0``."""
    return f"{planned.case}@{planned.device}"


def describe(record: Record, here: Machine) -> tuple[dict[str, Any], str]:
    """See `Lane.describe`.  Pure."""
    limit = ceilings.of_machines({here.machine_id: here})
    found = metrics.derive([record])
    measured = record.measurement
    assert measured
    about: dict[str, Any] = {
        "metrics": {m.name: {"value": m.value, "unit": m.unit, "low": m.low, "high": m.high} for m in found},
        "ranks": record.ranks,
        "device": record.device,
        "clock": measured.clock,
        "cache": measured.cache,
        "iterations_per_sample": measured.iterations_per_sample,
        "warmup_cut": measured.warmup_cut,
        "stop_reason": measured.stop_reason,
        "settings": dict(record.settings),
        "warnings": [f"{w.name}: {w.detail}" for w in warnings.doubts([record], limit)],
        "machine": machine_info(here),
    }
    if found and (ceiling := limit(record, found[0])):
        about["ceiling"] = {
            "metric": found[0].name,
            "value": ceiling.value,
            "unit": ceiling.unit,
            "fraction": found[0].value / ceiling.value,
            "firm": ceiling.firm,
            "source": ceiling.source,
        }
    verdicts = accept.judge([record], standards=accept.Standards(ceiling=limit, machines=[here]))
    return about, next((v.reason for v in verdicts if v.verdict == "invalid"), "")


def machine_info(here: Machine) -> dict[str, Any]:
    """What a machine is, as far as it does not change from run to run."""
    return {
        "machine_id": here.machine_id,
        "peer_class": here.peer_class,
        "host": here.host,
        "cpu": here.cpu.model,
        "cores": here.cpu.cores,
        "gpus": [gpu.name for gpu in here.gpus],
        "versions": dict(here.versions),
    }
