"""Telemetry: sensors of made-up machines, windows of planted samples, and a sidecar that may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clustergauge import processes, telemetry
from clustergauge.code import ROOT
from clustergauge.model import Gpu
from clustergauge.sensors import CLOCKS_READ, Sensors
from clustergauge.telemetry import KEPT, Sample, Sidecar, summarise
from clustergauge.warnings import doubts
from tests import fake_nvml, made
from tests.fake_nvml import NO_PERMISSION, Card
from tests.trees import pci, processors, write

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _no_gpu_left_behind() -> Iterator[None]:
    yield
    fake_nvml.forget()


def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another process; fails if it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


# -- sensors


def test_what_can_be_read_is_read_and_the_rest_is_absent(tmp_path: Path) -> None:
    assert Sensors(tmp_path, ()).read() == {}
    write(tmp_path, "proc/loadavg", "1.25 0.50 0.10 2/345 678\n")
    write(tmp_path, "proc/meminfo", "MemTotal: 2000 kB\nMemAvailable:  1000 kB\n")
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "nvme\n")
    write(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", "90000\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/name", "coretemp\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/temp1_input", "61000\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/temp2_input", "64500\n")
    assert Sensors(tmp_path, ()).read() == {"load1": 1.25, "memory_available_bytes": 1000 << 10, "cpu_temperature_c": 64.5}


def test_clocks_are_the_mean_of_a_few_processors_spread_over_all(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for cpu in cpus:
        write(tmp_path, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{2_000_000 + 1000 * cpu}\n")
    sensors = Sensors(tmp_path, ())
    assert 1 <= len(sensors._clocks) <= CLOCKS_READ
    if len(cpus) <= CLOCKS_READ:
        assert sensors.read()["cpu_mhz"] == pytest.approx(2000 + sum(cpus) / len(cpus))


def test_a_nominal_clock_is_no_reading(tmp_path: Path) -> None:
    processors(tmp_path, cores=[[0]], flags="sse2")
    text = (tmp_path / "proc/cpuinfo").read_text()
    write(tmp_path, "proc/cpuinfo", f"{text}cpu MHz\t\t: 2596.134\n")
    assert "cpu_mhz" not in Sensors(tmp_path, ()).read()
    write(tmp_path, "proc/cpuinfo", f"{text.replace('sse2', 'sse2 aperfmperf')}cpu MHz\t\t: 2596.134\n")
    assert Sensors(tmp_path, ()).read()["cpu_mhz"] == 2596.134


def test_energy_of_all_packages_adds_up_over_the_wrap_of_a_counter(tmp_path: Path) -> None:
    def zone(name: str, kind: str, microjoule: int) -> None:
        write(tmp_path, f"sys/class/powercap/{name}/name", kind)
        write(tmp_path, f"sys/class/powercap/{name}/energy_uj", str(microjoule))
        write(tmp_path, f"sys/class/powercap/{name}/max_energy_range_uj", "10000000")

    zone("intel-rapl:0", "package-0", 1_000_000)
    zone("intel-rapl:1", "package-1", 9_500_000)
    zone("intel-rapl:0:0", "core", 5)
    zone("intel-rapl:2", "psys", 5)
    sensors = Sensors(tmp_path, ())
    assert sensors.read()["cpu_energy_j"] == 0.0
    zone("intel-rapl:0", "package-0", 3_000_000)
    zone("intel-rapl:1", "package-1", 500_000)
    zone("intel-rapl:0:0", "core", 9_000_000)
    zone("intel-rapl:2", "psys", 9_000_000)
    assert sensors.read()["cpu_energy_j"] == pytest.approx(2.0 + 1.0)
    write(tmp_path, "sys/devices/system/cpu/online", "0-4095\n")
    assert "cpu_energy_j" not in Sensors(tmp_path, ()).read(), "what others do on their processors is not ours"
    (tmp_path / "sys/devices/system/cpu/online").unlink()
    assert "cpu_energy_j" in Sensors(tmp_path, ()).read()
    (tmp_path / "sys/class/powercap/intel-rapl:1/energy_uj").unlink()
    assert "cpu_energy_j" not in Sensors(tmp_path, ()).read(), "half of the packages is not the processors' energy"


def test_gpus_say_what_they_will(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_nvml.install(monkeypatch, Card(), Card(uuid="GPU-2", refuse={"nvmlDeviceGetPowerUsage": NO_PERMISSION}))
    found = Sensors(tmp_path).read()
    assert {n.removeprefix("gpu0_"): v for n, v in found.items() if n.startswith("gpu0_")} == {
        "sm_mhz": 1755.0,
        "memory_mhz": 2619.0,
        "power_w": 412.345,
        "temperature_c": 61.0,
        "energy_j": 5000.0,
        "pcie_gen": 5.0,
        "reasons": 1.0,
    }
    assert "gpu1_power_w" not in found
    assert found["gpu1_energy_j"] == 5000.0


def test_amd_gpus_say_what_their_files_do(tmp_path: Path) -> None:
    folder = pci(tmp_path, "0000:2b:00.0")
    write(tmp_path, f"{folder}/hwmon/hwmon5/freq1_input", "2100000000\n")
    write(tmp_path, f"{folder}/hwmon/hwmon5/power1_average", "550000000\n")
    write(tmp_path, f"{folder}/hwmon/hwmon5/temp1_input", "58000\n")
    write(tmp_path, f"{folder}/hwmon/hwmon5/energy1_input", "1234500000\n")
    sensors = Sensors(tmp_path, (), [Gpu(index=0, name="A", uuid="u", pci="0000:2b:00.0"), Gpu(index=1, name="A", uuid="v")])
    assert sensors.read() == {"gpu0_sm_mhz": 2100.0, "gpu0_power_w": 550.0, "gpu0_temperature_c": 58.0, "gpu0_energy_j": 1234.5}


# -- windows


def test_a_window_names_what_was_readable(tmp_path: Path) -> None:
    samples = [
        Sample(10.0, {"cpu_mhz": 3000.0, "load1": 1.0, "memory_available_bytes": 9.0, "gpu0_sm_mhz": 1980.0, "gpu0_reasons": 1}),
        Sample(10.5, {"cpu_mhz": 2000.0, "load1": 2.0, "memory_available_bytes": 5.0, "gpu0_power_w": 400.0, "gpu0_reasons": 4}),
        Sample(11.0, {"cpu_mhz": 2900.0, "cpu_temperature_c": 70.0, "gpu0_power_w": 600.0, "gpu0_temperature_c": 66.0}),
    ]
    assert summarise(samples, 10.0) == {
        "cpu_mhz_median": 2900.0,
        "cpu_mhz_min": 2000.0,
        "cpu_mhz_start": 3000.0,
        "cpu_mhz_end": 2900.0,
        "load1_max": 2.0,
        "memory_available_bytes_min": 5,
        "cpu_temperature_c_max": 70.0,
        "gpu0_sm_mhz_min": 1980.0,
        "gpu0_power_w_mean": 500.0,
        "gpu0_temperature_c_max": 66.0,
        "gpu0_throttle": "none",
        "gpu0_limited": "sw_power_cap",
    }


def test_a_fault_seen_once_is_reported_and_a_power_cap_is_none() -> None:
    samples = [Sample(at, {"gpu0_reasons": bits}) for at, bits in ((0.0, 0x4), (0.5, 0x44), (1.0, 0x0))]
    assert summarise(samples, 0.0) == {"gpu0_throttle": "hw_thermal_slowdown", "gpu0_limited": "sw_power_cap"}


def test_energy_is_what_a_counter_moved_between_its_first_and_last_reading() -> None:
    samples = [Sample(at, {"cpu_energy_j": joules}) for at, joules in ((10.1, 7.0), (10.6, 7.0), (11.1, 90.0), (11.6, 157.5))]
    assert summarise(samples, 10.0) == {"cpu_energy_j": 150.5, "cpu_energy_from_s": 0.1, "cpu_energy_to_s": 1.6}
    assert summarise(samples[:1], 10.0) == {}, "one reading is no energy"


def test_each_gpu_has_its_own_energy_and_a_counter_that_was_reset_has_none() -> None:
    values = [{"gpu0_energy_j": 30.0 * at, "gpu1_energy_j": at % 1.0, "gpu11_energy_j": 5.0} for at in (0.0, 0.75, 1.5, 2.25)]
    found = summarise([Sample(0.75 * i, v) for i, v in enumerate(values)], 0.0)
    assert found == {
        "gpu0_energy_j": 67.5,
        "gpu0_energy_from_s": 0.0,
        "gpu0_energy_to_s": 2.25,
        "gpu11_energy_j": 0.0,
        "gpu11_energy_from_s": 0.0,
        "gpu11_energy_to_s": 2.25,
    }


def test_the_sensors_speak_of_the_time_in_which_samples_were_taken() -> None:
    """The fake driver's counter of one GPU, its sensors read as the sidecar reads them: 200 W while sampling, 50 W elsewhere."""
    sidecar = Sidecar()
    hot = {"gpu0_sm_mhz": 1410.0, "gpu0_temperature_c": 71.0, "gpu0_reasons": 0x4}
    cold = {"gpu0_sm_mhz": 1980.0, "gpu0_temperature_c": 80.0, "gpu0_reasons": 0x40}
    joules = 0.0
    for step in range(20):
        at = 100.0 + 0.5 * step
        inside = 102.0 < at <= 106.0
        sidecar._samples.append(Sample(at, {**(hot if inside else cold), "gpu0_energy_j": joules}))
        joules += 100.0 if 102.5 <= at < 106.0 else 25.0
    found = sidecar.facts((100.0, 110.0), [(102.4, 105.8), (102.2, 106.1)])
    assert found == {
        "window": "sampling",
        "window_s": 3.9,
        "gpu0_sm_mhz_median": 1410.0,
        "gpu0_sm_mhz_min": 1410.0,
        "gpu0_sm_mhz_start": 1410.0,
        "gpu0_sm_mhz_end": 1410.0,
        "gpu0_temperature_c_max": 71.0,
        "gpu0_throttle": "none",
        "gpu0_limited": "sw_power_cap",
        "gpu0_energy_j": 700.0,
        "gpu0_energy_from_s": 0.3,
        "gpu0_energy_to_s": 3.8,
    }


def test_where_no_sensor_was_read_while_sampling_the_case_speaks_and_says_so() -> None:
    sidecar = Sidecar()
    sidecar._samples.extend(Sample(at, {"load1": at}) for at in (1.0, 2.0))
    assert sidecar.facts((0.0, 3.0), [(1.2, 1.4)]) == {"window": "case", "window_s": 3.0, "load1_max": 2.0}
    assert sidecar.facts((0.0, 3.0)) == {"window": "case", "window_s": 3.0, "load1_max": 2.0}
    assert sidecar.facts((5.0, 6.0), [(5.2, 5.4)]) == {}


def test_samples_and_sensors_are_read_by_the_same_clock() -> None:
    assert time.get_clock_info("perf_counter").implementation == time.get_clock_info("monotonic").implementation
    assert abs(time.perf_counter() - time.monotonic()) < 60, "the same moment is the same number"


def test_only_samples_inside_the_window_count() -> None:
    sidecar = Sidecar()
    sidecar._samples.extend(Sample(float(at), {"load1": float(at)}) for at in range(10))
    assert sidecar.window(2.5, 6.5) == {"load1_max": 6.0}
    assert sidecar.window(20.0, 30.0) == {}


def test_memory_is_bounded() -> None:
    sidecar = Sidecar()
    sidecar._samples.extend(Sample(float(at), {}) for at in range(2 * KEPT))
    assert len(sidecar._samples) == KEPT
    assert KEPT * telemetry.PERIOD_S == 20 * 60


# -- the process


def test_a_sidecar_samples_this_machine_and_its_death_leaves_empty_windows() -> None:
    sidecar = Sidecar()
    assert (sidecar.pid, sidecar.window(0.0, time.monotonic())) == (0, {})
    sidecar.start()
    try:
        began = time.monotonic()
        until(lambda: sidecar.window(began, time.monotonic()))
        assert "load1_max" in sidecar.window(began, time.monotonic())
        assert [p.pid for p in processes.descendants(os.getpid()) if p.pid == sidecar.pid] == [sidecar.pid]
        os.kill(sidecar.pid, signal.SIGKILL)
        until(lambda: processes.read(sidecar.pid) is None or processes.read(sidecar.pid).state == "Z")  # type: ignore[union-attr]
        later = time.monotonic()
        assert sidecar.window(later, later + 5.0) == {}
        assert sidecar.window(began, later), "what was sampled stays"
    finally:
        sidecar.stop()
    until(lambda: processes.read(sidecar.pid) is None)


def test_a_stopped_sidecar_holds_nobody_up() -> None:
    sidecar = Sidecar()
    sidecar.start()
    os.kill(sidecar.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert sidecar.window(began, began + 1.0) == {}
    sidecar.stop()
    until(lambda: processes.read(sidecar.pid) is None)


def test_a_sidecar_that_cannot_start_or_talks_nonsense_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    sidecar = Sidecar()
    sidecar.start()
    sidecar.stop()
    assert (sidecar.pid, sidecar.window(0.0, 1e9)) == (0, {})
    script = tmp_path / "babble"
    good = '{"at": 5.0, "values": {"load1": 1.0}}'
    lines = ["nonsense", '{"at": "x"}', "{" * 70000, '{"at": 6.0, "values": {"load1": "high"}}', good]
    script.write_text("#!/bin/sh\ncat <<'EOF'\n" + "\n".join(lines) + "\nEOF\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    sidecar.start()
    until(lambda: sidecar.window(0.0, 10.0))
    assert sidecar.window(0.0, 10.0) == {"load1_max": 1.0}
    sidecar.stop()


def test_a_sidecar_ends_with_its_agent() -> None:
    start = "import time; from clustergauge.telemetry import Sidecar; s = Sidecar(); s.start()"
    program = f"{start}; print(s.pid, flush=True); time.sleep(60)"
    agent = subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert agent.stdout
    pid = int(agent.stdout.readline())
    born = processes.read(pid)
    assert born
    agent.kill()
    agent.wait()
    agent.stdout.close()

    def gone() -> bool:
        now = processes.read(pid)
        return now is None or now.start != born.start or now.state == "Z"

    until(gone)


def test_a_falling_clock_shows_at_both_ends_without_the_idle_samples() -> None:
    clocks = [(300.0, 1), (1980.0, 0), (1980.0, 0), (1700.0, 0), (1500.0, 0), (1200.0, 0), (1190.0, 0), (300.0, 1)]
    samples = [Sample(0.5 * i, {"gpu0_sm_mhz": mhz, "gpu0_reasons": float(idle)}) for i, (mhz, idle) in enumerate(clocks)]
    found = summarise(samples, 0.0)
    assert found["gpu0_sm_mhz_median"] == 1600.0
    assert (found["gpu0_sm_mhz_start"], found["gpu0_sm_mhz_end"]) == (1980.0, 1195.0)
    assert found["gpu0_sm_mhz_min"] == 300.0
    assert "gpu0_sm_mhz_start" not in summarise(samples[:3], 0.0)  # two busy samples say nothing of a trend
    record = made.record(telemetry=found)
    assert [w.name for w in doubts([record]) if "clock" in w.name] == ["slowing clock"]
