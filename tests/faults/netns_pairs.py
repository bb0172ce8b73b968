#!/usr/bin/env python3
"""Hosts of network namespaces on this machine, one of them degraded: does the sweep of pairs name the right one?

    .venv/bin/python tests/faults/netns_pairs.py --trials 5          (root; iproute2; about 10 s a trial; not part of CI)

Four hosts hang on a bridge, each link shaped to 1 Gbit/s both ways.  A trial degrades one of them, chosen by chance, to
200 Mbit/s in what it sends, in what it receives, or both; or it sends one ordered pair through a router that drops packets (a
shaper with a queue of a few of them); or starves the processor of one host's ranks by a quota; or nothing.  Then run_suite.py
runs in the first host, mpiexec reaches the others through this file as its ``ssh``, and the suspects must be the planted one and
nobody else.

Of a starved host transfers may be as fast as others' for all that, so what counts is that a reader is told whose processor it
is: by a confirmed suspect with that cause, or by the doubt of a starved rank that stands under the case.  A trial says by which.
No other host or link may be a suspect, and no other rank be called starved in any launch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
if __name__ != "__main__" or "CLUSTERGAUGE_LAB_HOSTS" not in os.environ:  # as ssh it runs under any python3
    import msgspec

    from clustergauge import waits, warnings
    from clustergauge.model import Record

NET = "10.78.0"
DETOUR = 200
BASE, SLOW = "1gbit", "200mbit"
LAB = "cgp"
SWITCH = f"{LAB}-switch"
FAULTS = ("clean", "sends", "receives", "both", "link", "starved")
QUOTA_US, PERIOD_US = 5_000, 100_000
"""What a starved host's ranks get of a processor."""
SUITE = """title = "pairs between namespaces"
budget_s = 4.0
timeout_s = 120
[[cases]]
probe = "pairs"
backend = "mpi"
direction = "uni"
quiet = "{quiet}"
size = "4MiB"
"""


def tool(*words: str, ok: bool = True) -> None:
    """Run a command; complain with what it said."""
    done = subprocess.run(words, capture_output=True, text=True)
    if ok and done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


def shape(namespace: str, device: str, rate: str, *queue: str) -> None:
    """Shape what leaves a device."""
    tool("ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", device, "root", "handle", "1:",
         "tbf", "rate", rate, *(queue or ("burst", "128kb", "latency", "100ms")))  # fmt: skip


def link(namespace: str, device: str, port: str) -> None:
    """A cable from a host to a port of the switch."""
    tool("ip", "link", "add", device, "netns", namespace, "type", "veth", "peer", "name", port, "netns", SWITCH)
    tool("ip", "-n", SWITCH, "link", "set", port, "master", "br0", "up")
    tool("ip", "-n", namespace, "link", "set", device, "up")


@contextlib.contextmanager
def lab(hosts: int) -> Iterator[None]:
    """``hosts`` namespaces on a bridge; everything is gone afterwards."""
    try:
        tool("ip", "netns", "add", SWITCH)
        tool("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        tool("ip", "-n", SWITCH, "link", "set", "br0", "up")
        for i in range(hosts):
            tool("ip", "netns", "add", f"{LAB}-h{i}")
            link(f"{LAB}-h{i}", "eth0", f"p{i}")
            tool("ip", "-n", f"{LAB}-h{i}", "link", "set", "lo", "up")
            tool("ip", "-n", f"{LAB}-h{i}", "addr", "add", f"{NET}.{i + 1}/24", "dev", "eth0")
            restore(i)
        detour()
        yield
    finally:
        for name in [*(f"{LAB}-h{i}" for i in range(hosts)), f"{LAB}-detour", SWITCH]:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(int(pid), 9)
            tool("ip", "netns", "del", name, ok=False)


def detour() -> None:
    """A router on the bridge that forwards and drops: the path of the one pair that is sent through it."""
    name = f"{LAB}-detour"
    tool("ip", "netns", "add", name)
    link(name, "eth0", "pd")
    tool("ip", "-n", name, "addr", "add", f"{NET}.{DETOUR}/24", "dev", "eth0")
    for key, value in (("ip_forward", 1), ("conf/all/send_redirects", 0), ("conf/eth0/send_redirects", 0)):
        tool("ip", "netns", "exec", name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}")
    shape(name, "eth0", "400mbit", "burst", "16kb", "limit", "24kb")


def restore(host: int) -> None:
    """Both ways of a host's link as they were."""
    shape(f"{LAB}-h{host}", "eth0", BASE)
    shape(SWITCH, f"p{host}", BASE)


@contextlib.contextmanager
def quota(folder: Path) -> Iterator[Path]:
    """A control group that gets little of the processors (either version of the kernel's interface), and how hosts, over whose
    /sys another one lies, reach it: by a mount in ``folder``."""
    old = Path("/sys/fs/cgroup/cpu")
    group = (old if old.is_dir() else old.parent) / f"{LAB}-starved"
    group.mkdir(exist_ok=True)
    try:
        if old.is_dir():
            (group / "cpu.cfs_period_us").write_text(f"{PERIOD_US}")
            (group / "cpu.cfs_quota_us").write_text(f"{QUOTA_US}")
        else:
            (group / "cpu.max").write_text(f"{QUOTA_US} {PERIOD_US}")
        seen = folder / "group"
        seen.mkdir(exist_ok=True)
        tool("mount", "--bind", str(group), str(seen))
        yield seen / "cgroup.procs"
    finally:
        tool("umount", str(folder / "group"), ok=False)
        for _ in range(100):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


@contextlib.contextmanager
def fault(kind: str, host: int, other: int) -> Iterator[None]:
    """Plant a fault at ``host`` (a link: from it to ``other``)."""
    name = f"{LAB}-h{host}"
    if kind in ("sends", "both"):
        shape(name, "eth0", SLOW)
    if kind in ("receives", "both"):
        shape(SWITCH, f"p{host}", SLOW)
    if kind == "link":
        tool("ip", "-n", name, "route", "add", f"{NET}.{other + 1}/32", "via", f"{NET}.{DETOUR}")
    try:
        yield
    finally:
        restore(host)
        if kind == "link":
            tool("ip", "-n", name, "route", "del", f"{NET}.{other + 1}/32")


def inside(host: str, *words: str) -> list[str]:
    """A command that runs ``words`` in a host: own network, host name, shared memory and table of hosts."""
    table = os.environ["CLUSTERGAUGE_LAB_HOSTS"]
    script = 'hostname "$1"; mount --bind "$2" /etc/hosts; mount -t tmpfs shm /dev/shm; shift 2; exec "$@"'
    return ["ip", "netns", "exec", f"{LAB}-{host}", "unshare", "--uts", "--ipc", "--mount",
            "sh", "-c", script, "_", host, table, *words]  # fmt: skip


def ssh(words: list[str]) -> None:
    """Stand in for ssh: ``[-options] HOST COMMAND…``."""
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("-l", "-p", "-o", "-i", "-F") else words[1:]
    command = inside(words[0], "sh", "-c", " ".join(words[1:]))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvp(command[0], command)


def measure(folder: Path, hosts: int, quiet: str, starving: Path | None = None, starved: int = 0) -> tuple[dict, str]:
    """The document of one run in the lab, empty where it wrote none, and how the run ended, in words.

    ``starving``: the control group into which the ranks of host ``starved`` go.
    """
    (folder / "suite.toml").write_text(SUITE.format(quiet=quiet))
    mpiexec = Path(sys.executable).parent / "mpiexec"
    names = ",".join(f"h{i}" for i in range(hosts))
    launcher = f"{mpiexec} -launcher ssh -launcher-exec {__file__} -hosts {names} -ppn 1 -n {{ranks}}"
    if starving:  # bound, two other hosts would share the processor that it leaves alone, or not
        join = f'[ "$(hostname)" != "$0" ] || echo $$ >{starving}; unset CLUSTERGAUGE_CPUS; exec "$@"'
        launcher += f" sh -c '{join}' h{starved}"
    run = [sys.executable, str(ROOT / "run_suite.py"), "--suite", str(folder / "suite.toml"), "--ranks", str(hosts),
           "--launcher", launcher, "-o", str(folder / "results"), "--format", "json"]  # fmt: skip
    done = subprocess.run(inside("h0", *run), capture_output=True, text=True, cwd=ROOT)
    words = "; ".join(line.strip() for line in done.stderr.splitlines()[-3:] if line.strip())
    ended = f"run_suite.py exited with {done.returncode}{': ' if words else ''}{words}"
    try:
        return json.loads(done.stdout), ended
    except ValueError:
        return {}, f"no document: {ended}"


def no_result(document: dict, ended: str) -> str:
    """Why a run says nothing of its pairs: what its records say, and how it ended."""
    reasons = [f"{record['status']}: {record.get('reason', '')}" for record in document.get("records", [])]
    return "; ".join([*(reasons or ["no record"]), ended])


def wanted(kind: str, host: int, other: int) -> set[tuple[str, str, str]]:
    """The suspects of a planted fault: kind, where, and the direction or the cause."""
    if kind == "clean":
        return set()
    if kind == "link":
        return {("link", f"h{host} → h{other}", "")}
    return {("endpoint", f"h{host}", "processor" if kind == "starved" else kind)}


def starved_ranks(records: list[Record]) -> set[int]:
    """Ranks that any launch calls starved."""
    told = [r.measurement.series[waits.SERIES].values for r in records if r.measurement]
    return {one.rank for shares in told for one in waits.starved(shares)}


def named_starved(found: dict, records: list[Record], host: int) -> list[str]:
    """How a reader is told that the host is starved: by a suspect, by a doubt, or not at all."""
    suspects = [
        s for s in found.get("suspects", []) if s["confirmed"] and s.get("cause") == "processor" and s["where"] == f"h{host}"
    ]
    doubts = [d for d in warnings.doubts(records) if d.name == "starved rank" and f" on h{host} waited" in d.detail]
    return [*(["confirmed"] if suspects else []), *(["doubt"] if doubts else [])]


def trial(kind: str, number: int, hosts: int, quiet: str, folder: Path, keep: Path | None = None) -> bool:
    """One fault, one run: whether the right one, and nobody else, was named.  ``keep``: where to keep what was wrong."""
    chance = random.Random(f"{kind} {number}")
    host, other = chance.sample(range(hosts), 2)
    began = time.monotonic()
    with fault(kind, host, other), quota(folder) if kind == "starved" else contextlib.nullcontext() as starving:
        document, ended = measure(folder, hosts, quiet, starving, host)
    if not document.get("pairs"):
        print(f"{kind:9} {number:3}  WRONG, NO RESULT  {no_result(document, ended)}", flush=True)
        return False
    found = document["pairs"][0]
    got = {(s["kind"], s["where"], s.get("cause") or s.get("direction", "")) for s in found.get("suspects", [])}
    planted = wanted(kind, host, other)
    records = msgspec.convert(document["records"], list[Record])
    named = named_starved(found, records, host)
    if kind == "starved":
        right = got <= planted and starved_ranks(records) <= {host} and bool(named)
    else:
        right = got == planted and not starved_ranks(records)
    if keep and not right:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{kind}-{number}.json").write_text(json.dumps(document))
    said = "; ".join(
        f"{s['where']} {s.get('direction', '')} {100 * s['ratio']:.0f} % ({100 * s['low']:.0f} … {100 * s['high']:.0f})"
        f"{'' if s['confirmed'] else ' unconfirmed'} {s.get('note', '')}"
        for s in found.get("suspects", [])
    )
    told = [r.measurement.series[waits.SERIES].values for r in records if r.measurement and waits.SERIES in r.measurement.series]
    said += f"; waited {', '.join(f'{share:.2f}' for share in told[0])}" if told else "; no rank told its waits"
    said += f"; starved by {' and '.join(named)}" if named else ""
    smallest = found["smallest_degradation"]
    shows = f"{100 * smallest:.0f} %" if smallest is not None else "–"
    word = "right" if right else f"WRONG (planted at h{host}, to h{other})"
    print(f"{kind:9} {number:3}  {word}  {said or 'nobody'}  shows {shows}  {time.monotonic() - began:.0f} s", flush=True)
    return right


def main() -> int:
    """Run the trials; 1 if one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=3, help="of each fault")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the trials, in place of the first ones")
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--keep", type=Path, help="folder into which documents of trials that go wrong are written")
    parser.add_argument("--quiet", choices=("one", "round"), default="one")
    options = parser.parse_args()
    numbers = options.only or range(options.trials)
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    with tempfile.TemporaryDirectory(prefix="netns-pairs-") as name, lab(options.hosts):
        folder = Path(name)
        table = folder / "hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(f"{NET}.{i + 1} h{i}\n" for i in range(options.hosts)))
        os.environ["CLUSTERGAUGE_LAB_HOSTS"] = str(table)
        results = {
            kind: [trial(kind, number, options.hosts, options.quiet, folder, options.keep) for number in numbers]
            for kind in options.faults.split(",")
        }
    for kind, right in results.items():
        print(f"{kind:9} {sum(right)} of {len(right)} right")
    return 0 if all(all(right) for right in results.values()) else 1


if __name__ == "__main__":
    if len(sys.argv) > 2 and "CLUSTERGAUGE_LAB_HOSTS" in os.environ:
        ssh(sys.argv[1:])
    sys.exit(main())
