"""What the sensors say during a case: a process of its own samples them, its agent keeps the last minutes.

``python -m clustergauge.telemetry`` prints a JSON line every `PERIOD_S`.  It runs beside the workers, with lower priority, and
ends with its agent.  Whatever becomes of it, the agent goes on: windows are then empty.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from clustergauge import devices, nvml, processes
from clustergauge.code import ROOT
from clustergauge.model import Data, Scalar
from clustergauge.sensors import Sensors

PERIOD_S = 0.5
"""Time between samples."""
KEPT = 2400
"""Samples kept: 20 minutes."""
_LINE_BYTES = 1 << 16
Window = tuple[float, float]
"""Two moments of ``time.monotonic``."""


class Sample(Data, frozen=True):
    """One line: when (``time.monotonic`` seconds, one clock for all processes of a node) and what was readable."""

    at: float
    values: dict[str, float]


class Sidecar:
    """The sampling process as its agent sees it."""

    def __init__(self) -> None:
        self.pid = 0
        """Its process; 0 before `start`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def start(self) -> None:
        """Start sampling.  Never raises: without a sidecar there are no sensors, and that is all."""
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "clustergauge.telemetry"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))},
            )
            self.pid = self._process.pid
            threading.Thread(target=self._listen, args=(self._process,), name="telemetry", daemon=True).start()

    def stop(self) -> None:
        """End the process.  Its windows stay."""
        if self._process:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)

    def facts(self, case: Window, sampled: Sequence[Window] = ()) -> dict[str, Scalar]:
        """What was readable, as `summarise` names it, while the ranks here took their samples (from the first that began to the
        last that ended); of the whole case where they took none, or so quickly that no sensor was read.  Empty without readings.

        ``window`` says which (``sampling`` or ``case``), ``window_s`` how long it was.
        """
        windows = {"case": case}
        if sampled:
            windows = {"sampling": (min(began for began, _ in sampled), max(ended for _, ended in sampled)), **windows}
        for name, (began, ended) in windows.items():
            if found := self.window(began, ended):
                return {"window": name, "window_s": round(ended - began, 6), **found}
        return {}

    def window(self, began: float, ended: float) -> dict[str, Scalar]:
        """What was readable between two moments of ``time.monotonic``, as `summarise` names it; empty without samples."""
        return summarise([sample for sample in tuple(self._samples) if began <= sample.at <= ended], began)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Read until the process ends.  A line that is no sample is left out."""
        decoder = msgspec.json.Decoder(Sample)
        assert process.stdout
        with process.stdout as lines:
            while line := lines.readline(_LINE_BYTES):
                with contextlib.suppress(msgspec.DecodeError):
                    self._samples.append(decoder.decode(line))


def summarise(samples: Sequence[Sample], began: float) -> dict[str, Scalar]:
    """The samples of a window that began then as flat names; what was never readable is absent.

    ``cpu_mhz_median/min/start/end``, ``cpu_temperature_c_max``, ``load1_max``, ``memory_available_bytes_min``, and for each GPU,
    after ``gpu0_``: ``sm_mhz_median/min/start/end`` (all but the lowest without samples that found it idle; start and end: of the
    first and last third), ``memory_mhz_median``, ``power_w_mean``, ``temperature_c_max``, ``pcie_gen_max``, ``throttle`` (the
    faults seen, comma-separated, or ``none``), ``limited`` (what held the clock down without being a fault, such as
    ``sw_power_cap``).  ``cpu_energy_j`` and ``gpu0_energy_j``: what an energy counter moved between its first and last reading in
    the window, ``…_energy_from_s`` and ``…_energy_to_s`` seconds after it began.
    """
    found: dict[str, Scalar] = {}
    columns: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, value in sample.values.items():
            columns.setdefault(name, []).append((sample.at, value))
    for name, points in columns.items():
        values = [value for _, value in points]
        what = name.partition("_")[2] if name.startswith("gpu") else name
        match what:
            case "cpu_mhz" | "sm_mhz":
                found |= _clock(name, values, _busy(name, samples))
            case "memory_mhz":
                found[f"{name}_median"] = statistics.median(values)
            case "power_w":
                found[f"{name}_mean"] = round(statistics.fmean(values), 3)
            case "memory_available_bytes":
                found[f"{name}_min"] = int(min(values))
            case "energy_j" | "cpu_energy_j":
                found |= _energy(name, points, began)
            case "reasons":
                seen = 0
                for value in values:
                    seen |= int(value)
                gpu = name.removesuffix("_reasons")
                found[f"{gpu}_throttle"] = nvml.words(seen, nvml.FAULTS)
                found[f"{gpu}_limited"] = nvml.words(seen, nvml.LIMITS)
            case _:
                found[f"{name}_max"] = max(values)
    return found


def _busy(name: str, samples: Sequence[Sample]) -> list[float]:
    """A clock in the samples that did not find its GPU idle; of a processor in all of them."""
    reasons = f"{name.partition('_')[0]}_reasons"
    return [s.values[name] for s in samples if name in s.values and not int(s.values.get(reasons, 0)) & nvml.IDLE]


def _clock(name: str, values: Sequence[float], busy: Sequence[float]) -> dict[str, Scalar]:
    """The lowest of all readings; of those at work the median, and the medians of the first and last third if there are three."""
    found: dict[str, Scalar] = {f"{name}_min": min(values)}
    if busy:
        found[f"{name}_median"] = statistics.median(busy)
    if third := len(busy) // 3:
        found |= {f"{name}_start": statistics.median(busy[:third]), f"{name}_end": statistics.median(busy[-third:])}
    return found


def _energy(name: str, points: Sequence[tuple[float, float]], began: float) -> dict[str, Scalar]:
    """What a counter moved between its first and last reading; nothing from one reading, or where it fell (a reset)."""
    (first, before), (last, after) = points[0], points[-1]
    if last <= first or any(later < earlier for (_, earlier), (_, later) in itertools.pairwise(points)):
        return {}
    span = {"j": after - before, "from_s": first - began, "to_s": last - began}
    return {f"{name.removesuffix('_j')}_{what}": round(value, 6) for what, value in span.items()}


# --------------------------------------------------------------------------------------------------------------------------
# the process


def main() -> int:
    """Print samples until the agent is gone."""
    processes.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    parent = os.getppid()
    with contextlib.suppress(OSError):
        os.nice(5)
    found = nvml.devices()
    sensors = Sensors(devices=found, amd=[] if found else devices.gpus(found=found))
    encoder = msgspec.json.Encoder()
    due = time.monotonic()
    while os.getppid() == parent:
        try:
            os.write(1, encoder.encode(Sample(time.monotonic(), sensors.read())) + b"\n")
        except OSError:
            return 0
        due = max(due + PERIOD_S, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
