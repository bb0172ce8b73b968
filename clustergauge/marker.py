"""What ``@pytest.mark.gauge(…)`` asks of a kernel: the work of one call, and a threshold.  Read strictly."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

FIELDS = ("flops", "ops", "bytes", "dtype", "floor", "limit", "device", "budget_s")
"""What the marker knows."""
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(\S+)\s*")


@dataclass(frozen=True)
class Asked:
    """What the marker says.  ``bound`` in its bare ``unit``; ``None``: no threshold."""

    workload: Any
    metric: str
    bound: float | None
    unit: str
    text: str
    device: str
    budget_s: float


def read(node: pytest.Item) -> Asked:
    """What the marker of a test asks.  Raises ``pytest.UsageError``."""
    from clustergauge.model import DTYPES, Workload

    mark = node.get_closest_marker("gauge")
    given = dict(mark.kwargs) if mark else {}
    if mark and (mark.args or set(given) - set(FIELDS)):
        raise pytest.UsageError(f"{node.nodeid}: gauge takes {', '.join(FIELDS)}, each by name")
    counts = {name: _count(node.nodeid, name, given.get(name, 0)) for name in ("flops", "ops", "bytes")}
    if given.get("dtype", "") not in ("", *DTYPES):
        raise pytest.UsageError(f"{node.nodeid}: gauge: dtype={given['dtype']!r} (there are {', '.join(DTYPES)})")
    if counts["flops"] and counts["ops"]:
        raise pytest.UsageError(f"{node.nodeid}: gauge: flops or ops, not both")
    bound = "compute" if counts["flops"] or counts["ops"] else "memory" if counts["bytes"] else "latency"
    workload = Workload(
        flops=counts["flops"], ops=counts["ops"], bytes_read=counts["bytes"], dtype=given.get("dtype", ""), bound=bound
    )
    budget = given.get("budget_s", 2.0)
    if not isinstance(budget, int | float) or not 0 < budget < 1e6:
        raise pytest.UsageError(f"{node.nodeid}: gauge: budget_s={budget!r} must be seconds")
    metric, value, unit, text = _threshold(node.nodeid, given, counts)
    return Asked(workload, metric, value, unit, text, _device(node.nodeid, given.get("device")), float(budget))


def _count(where: str, name: str, given: Any) -> int:
    """Work of one call; numpy's whole numbers are such too."""
    try:
        count = operator.index(given)
    except TypeError:
        count = -1
    if count < 0:
        raise pytest.UsageError(f"{where}: gauge: {name}={given!r} must be a whole number: the work of one call")
    return count


def _threshold(where: str, given: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, float | None, str, str]:
    """Metric, bound in its bare unit, that unit, and the words: a rate is a floor, a time a limit."""
    from clustergauge.units import parse_rate

    if "floor" in given and "limit" in given:
        raise pytest.UsageError(f"{where}: gauge: floor or limit, not both")
    if "floor" not in given and "limit" not in given:
        return "", None, "", ""
    kind = "floor" if "floor" in given else "limit"
    match = _NUMBER.fullmatch(given[kind]) if isinstance(given[kind], str) else None
    if not match:
        raise pytest.UsageError(f"{where}: gauge: {kind}={given[kind]!r}: write '700 TFLOP/s', '3 TB/s' or '1.4 ms'")
    try:
        value, unit = parse_rate(float(match[1]), match[2])
    except ValueError as error:
        raise pytest.UsageError(f"{where}: gauge: {kind}: {error}") from None
    work = {"FLOP/s": "flops", "OP/s": "ops", "B/s": "bytes", "s": ""}.get(unit)
    if work is None or value <= 0 or (unit == "s") != (kind == "limit"):
        raise pytest.UsageError(f"{where}: gauge: {kind}={given[kind]!r}: a rate is a floor, a time a limit, and more than 0")
    if work and not counts[work]:
        raise pytest.UsageError(f"{where}: gauge: a floor in {match[2]} needs {work}=…, the work of one call")
    metric = {"flops": "compute", "ops": "compute", "bytes": "bandwidth", "": "time"}[work]
    return metric, value, unit, f"{'at least' if kind == 'floor' else 'at most'} {given[kind].strip()}"


def _device(where: str, device: Any) -> str:
    """The device that the kernel runs on.  A GPU must be named: launching is over long before its kernel is."""
    if device is None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            raise pytest.UsageError(f"{where}: gauge: this process uses a GPU: say device='cuda:0', or device='cpu'")
        return "cpu"
    if not isinstance(device, str) or not re.fullmatch(r"cpu|cuda:\d{1,3}", device):
        raise pytest.UsageError(f"{where}: gauge: device={device!r}: write 'cpu' or 'cuda:0'")
    return device


def require(where: str, device: str, *called: object) -> None:
    """Raise ``pytest.UsageError`` unless there is the ``device`` that is to be timed (empty: none), and these can be called."""
    if not all(map(callable, called)):
        raise pytest.UsageError(f"{where}: gauge: kernel and check are functions: gauge(lambda: …, check=lambda: …)")
    if device.startswith("cuda"):
        try:
            import torch
        except ImportError:
            raise pytest.UsageError(f"{where}: gauge: device={device!r} is timed by torch, which is not installed") from None
        if (count := torch.cuda.device_count()) <= int(device.partition(":")[2]):
            raise pytest.UsageError(f"{where}: gauge: device={device!r}: torch sees {count} GPUs here")
