"""Whether a machine is what an acceptance file expects: its parts, switches, versions, settings and preflight.  Pure.

A part that is missing is a *FAIL*, whatever the others reach; one that cannot be read is *not measured*, never fine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from clustergauge.criteria import Expect, fits
from clustergauge.model import Gpu, Machine, Scalar, Verdict
from clustergauge.units import counted, format_size, parse_size

CASE = "inventory"
"""The case of these verdicts."""
OF_GPUS = ("gpu", "gpu_memory", "ecc", "mig", "persistence", "power_limit_w")
"""What may be expected of every GPU."""
UP = ("up", "active", "4: active")
"""States of a port that carries data."""


def judge(machines: Iterable[Machine], expect: Expect | None, source: str = "") -> list[Verdict]:
    """One verdict for every expectation that a machine does not meet or leaves unknown, and one *pass* where it meets all."""
    found: list[Verdict] = []
    for machine in machines if expect else ():
        verdict = Verdict(case=CASE, machine_id=machine.machine_id, verdict="pass", source=source)
        assert expect
        answers = [answer for answer in _answers(machine, expect) if answer is not None]
        found += [
            Verdict(
                case=CASE, machine_id=machine.machine_id, metric=name, verdict="FAIL" if known else "not measured",
                reason=words, source=source,
            )
            for name, known, words in answers
        ] or [verdict]  # fmt: skip
    return found


def trained_down(machines: Iterable[Machine]) -> list[Verdict]:
    """A *FAIL* for every finding that fails by itself (a link that trained down), whatever is expected and was measured.

    And for every port with verbs (InfiniBand, RoCE, EFA) that is not active where most machines that have it have it active.
    """
    machines = list(machines)
    found = [
        Verdict(case=finding.name, machine_id=machine.machine_id, verdict="FAIL", reason=f"{finding.detail}; {finding.remedy}")
        for machine in machines
        for finding in machine.findings
        if finding.fails
    ]
    ports = [(machine, nic) for machine in machines for nic in machine.nics if nic.kind != "ethernet" and nic.state]
    have = Counter((nic.kind, nic.name) for _, nic in ports)
    active = Counter((nic.kind, nic.name) for _, nic in ports if nic.state == "active")
    for machine, nic in ports:
        up, of = active[nic.kind, nic.name], have[nic.kind, nic.name]
        if nic.state != "active" and 2 * up > of:
            here = f"{machine.host}'s {nic.name} is {nic.state}"
            why = f"{here}, on {up} of {of} machines it is active; look at cable and switch port"
            found.append(Verdict(case=f"link/{nic.name}", machine_id=machine.machine_id, verdict="FAIL", reason=why))
    return found


Answer = tuple[str, bool, str] | None
"""What was asked, whether it is known, and what is wrong; ``None``: it is as expected."""


def _answers(machine: Machine, expect: Expect) -> Iterator[Answer]:
    gpus = machine.gpus
    if expect.gpus is not None:
        yield None if len(gpus) == expect.gpus else ("gpus", True, f"{counted(len(gpus), 'GPU')}, expected {expect.gpus}")
    elif not gpus and (asked := [name for name in OF_GPUS if getattr(expect, name) not in ("", None)]):
        yield ("gpus", True, f"no GPU, expected some ({', '.join(asked)})")  # of none each is as it should be
    for gpu in gpus:
        yield from _gpu(gpu, expect)
    if expect.cores is not None:
        cores = machine.cpu.cores
        yield None if cores >= expect.cores else ("cores", True, f"{cores} cores, expected {expect.cores} or more")
    if expect.memory:
        least, size = parse_size(expect.memory), machine.memory_bytes
        yield None if size >= least else ("memory", True, f"{format_size(size)} of memory, expected {expect.memory} or more")
    yield _ports(machine, expect)
    for name, asked in expect.versions.items():
        version = machine.versions.get(name, "")
        if not version:
            yield (f"version {name}", False, f"no version of {name} could be read, expected {asked}")
        elif not fits(asked, version):
            yield (f"version {name}", True, f"{name} is {version}, expected {asked}")
    for name, wanted in expect.settings.items():
        yield _same(f"setting {name}", machine.settings.get(name), wanted)
    yield from _ready(machine, expect)


def _gpu(gpu: Gpu, expect: Expect) -> Iterator[Answer]:
    who = f"gpu {gpu.index}"
    if expect.gpu and expect.gpu.lower() not in gpu.name.lower():
        yield (who, bool(gpu.name), f"{who} is {gpu.name or 'unknown'}, expected {expect.gpu}")
    if expect.gpu_memory:
        if gpu.memory_bytes is None:
            yield (f"{who} memory", False, f"the memory of {who} could not be read")
        elif gpu.memory_bytes < parse_size(expect.gpu_memory):
            yield (f"{who} memory", True, f"{who} has {format_size(gpu.memory_bytes)}, expected {expect.gpu_memory} or more")
    for name in ("ecc", "mig", "persistence"):
        if (wanted := getattr(expect, name)) is not None:
            yield _same(f"{who} {name}", getattr(gpu, name), wanted)
    if expect.power_limit_w is not None:
        limit = gpu.power_limit_w
        if limit is None:
            yield (f"{who} power limit", False, f"the power limit of {who} could not be read")
        elif limit < expect.power_limit_w:
            yield (f"{who} power limit", True, f"{who} is limited to {limit:g} W, expected {expect.power_limit_w:g} W or more")


def _ports(machine: Machine, expect: Expect) -> Answer:
    """So many ports of a kind are up and fast enough; those of unknown speed leave it open."""
    if expect.nics is None:
        return None
    kind = [nic for nic in machine.nics if not expect.nic_kind or nic.kind == expect.nic_kind]
    up = [nic for nic in kind if nic.state.lower() in UP]
    rate = expect.nic_rate_gbit_s
    fast = [nic for nic in up if rate is None or (nic.rate_gbit_s is not None and nic.rate_gbit_s >= rate)]
    unsure = [nic for nic in up if rate is not None and nic.rate_gbit_s is None]
    if len(fast) >= expect.nics:
        return None
    bad = [nic.name for nic in kind if nic not in fast]
    wanted = f"{expect.nics} {expect.nic_kind or 'network'} ports up" + (f" at {rate:g} Gbit/s" if rate is not None else "")
    words = f"{len(fast)} of {wanted}" + (f" (not so: {', '.join(bad)})" if bad else "")
    return ("nics", len(fast) + len(unsure) < expect.nics, words)


def _same(name: str, found: Scalar, wanted: Scalar) -> Answer:
    if found is None:
        return name, False, f"{name} could not be read, expected {_word(wanted)}"
    return None if found == wanted else (name, True, f"{name} is {_word(found)}, expected {_word(wanted)}")


def _word(value: Scalar) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _ready(machine: Machine, expect: Expect) -> Iterator[Answer]:
    """Preflight: every check that was asked for was made, and found nothing."""
    findings = {finding.name: finding for finding in machine.findings}
    if "*" in expect.ready and not findings:
        yield ("preflight", False, "no preflight check was made here")
    asked = [*(findings if "*" in expect.ready else ()), *(name for name in expect.ready if name != "*")]
    for name in dict.fromkeys(asked):
        finding = findings.get(name)
        if finding is None:
            yield (f"preflight {name}", False, f"preflight has no check {name!r} here")
        elif finding.state != "ok":
            known = finding.state == "warning"
            yield (f"preflight {name}", known, f"{name}: {finding.detail or 'unknown'}")
