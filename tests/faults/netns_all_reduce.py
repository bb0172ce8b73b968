#!/usr/bin/env python3
"""All-reduce between four hosts at 1 Gbit/s: is the suite as fast as a loop in C there, and did the links move what it says?

    .venv/bin/python tests/faults/netns_all_reduce.py            (root; iproute2; a C compiler; two minutes; not part of CI)

The hosts are network namespaces (``netns.sh``), each link shaped both ways.  First ``tools/beside_mpi.py`` runs over them, one
rank a host: suite and C take turns in one process, so that both meet the same links.  Asked for is `GOAL` of C's bus bandwidth,
in samples and in loops.  Then run_suite.py measures the same over agents on the hosts, and what each of their interfaces sent
and received must be what the algorithm moves, within `WITHIN` (`clustergauge.collective_bytes`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from clustergauge import path, stats  # noqa: E402
from clustergauge.model import Record  # noqa: E402
from clustergauge.units import format_size, parse_size  # noqa: E402
from tests.faults.netns_pairs import BASE, shape, tool  # noqa: E402

SCRIPT = Path(__file__).with_name("netns.sh")
HOSTS = ("b0", "b1", "b2", "b3")
GOAL = 0.95
WITHIN = 0.03
SUITE = """title = "all-reduce between namespaces"
[[cases]]
probe = "all_reduce"
backend = "mpi"
dtype = "fp32"
size = "{size}"
budget_s = 5.0
timeout_s = 120
"""


@contextlib.contextmanager
def lab(name: str) -> Iterator[None]:
    """The hosts, their links shaped; everything is gone afterwards."""
    os.environ["LAB"] = name
    try:
        tool(str(SCRIPT), "up", *HOSTS)
        for number, host in enumerate(HOSTS, 1):
            shape(f"{name}-{host}", "eth0", BASE)
            shape(f"{name}-switch", f"p{number}", BASE)
        yield
    finally:
        tool(str(SCRIPT), "down")


def ssh(folder: Path) -> Path:
    """What MPICH's launcher takes for ssh: drops its options, and goes by the lab."""
    program = folder / "ssh"
    skip = "while case $1 in -*) true ;; *) false ;; esac; do shift; done"
    program.write_text(f'#!/bin/sh\n{skip}\nexec {SCRIPT} ssh "$@"\n')
    program.chmod(0o700)
    return program


def beside(folder: Path, sizes: str, pairs: int) -> bool:
    """Suite and C in turns; whether the suite reaches what is asked for."""
    mpiexec = (
        f"{Path(sys.executable).parent / 'mpiexec'} -launcher ssh -launcher-exec {ssh(folder)} -hosts {','.join(HOSTS)} -ppn 1"
    )
    out = folder / "pairs.json"
    words = ["--mpiexec", mpiexec, "--ranks", str(len(HOSTS)), "--sizes", sizes, "--pairs", str(pairs), "--budget", "1"]
    command = [sys.executable, str(ROOT / "tools" / "beside_mpi.py"), *words, "--json", str(out)]
    done = subprocess.run([str(SCRIPT), "exec", HOSTS[0], *command], capture_output=True, text=True, check=False)
    if not out.exists():
        raise SystemExit(done.stderr or done.stdout)
    document, met = json.loads(out.read_text()), True
    moved = 2 * (len(HOSTS) - 1) / len(HOSTS)
    for result in document["results"]:
        for what, suite, c in (("samples", "suite", "c"), ("loop", "suite_loop", "c_loop")):
            ratios = sorted(pair[c] / pair[suite] for pair in result["pairs"])
            middle = stats.median(ratios)
            own, theirs = (moved * result["size"] / stats.median([p[name] for p in result["pairs"]]) for name in (suite, c))
            met &= middle >= GOAL
            print(
                f"{format_size(result['size']):>8} {what:8} busbw {8e-6 * own:6.1f} Mbit/s, in C {8e-6 * theirs:6.1f}; "
                f"{middle:.3f} of C ({ratios[0]:.3f} … {ratios[-1]:.3f}, {len(ratios)} pairs): "
                f"{'met' if middle >= GOAL else f'MISSED, asked is {GOAL}'}",
                flush=True,
            )
    return met


def counted(folder: Path, size: str) -> bool:
    """One case over agents on all hosts; whether every interface moved what was predicted."""
    (folder / "suite.toml").write_text(SUITE.format(size=size))
    address = subprocess.run([str(SCRIPT), "address"], capture_output=True, text=True, check=True).stdout.strip()
    remote = f"env LAB={os.environ['LAB']} {shlex.quote(str(SCRIPT))} ssh {{host}}"
    words = ["--hosts", ",".join(HOSTS), "--remote", remote, "--address", address, "--ranks", "1"]
    command = [sys.executable, str(ROOT / "run_suite.py"), "run", "--suite", str(folder / "suite.toml"), *words]
    done = subprocess.run(
        [*command, "-o", str(folder / "results"), "--format", "json"], capture_output=True, text=True, check=False
    )
    if not done.stdout:
        raise SystemExit(done.stderr)
    records = [r for r in msgspec.convert(json.loads(done.stdout)["records"], list[Record]) if r.device == "cpu:nodes"]
    if not records or (bad := [r.reason for r in records if r.status != "ok"]):
        print(f"nothing was measured over the hosts: {'; '.join(bad) if records else done.stderr}")
        return False
    good = [moved(record, parse_size(size)) for record in records]
    return all(good)


def moved(record: Record, size: int) -> bool:
    """Whether every interface moved what was predicted for a case."""
    runs = int(record.counters.path["runs"] or 0)
    needed = 2 * (len(HOSTS) - 1) / len(HOSTS) * size * runs
    shares = {
        f"{host} {what}": int(record.counters.path[f"{host}/eth0.{what}_bytes"] or 0) / needed
        for host in HOSTS
        for what in ("tx", "rx")
    }
    good = all(abs(share - 1) <= WITHIN for share in shares.values())
    said = ", ".join(f"{name} {100 * (share - 1):+.2f} %" for name, share in shares.items())
    print(f"{record.case}: {runs} runs, {needed / 1e6:.1f} MB predicted of each: {said}: {'met' if good else 'MISSED'}")
    print(f"  path: {path.proof(record)}", flush=True)
    return good


def main() -> int:
    """Both; 1 if one of them is not as asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--sizes", default="1MiB,16MiB", help="with commas between")
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("network namespaces need root")
    with tempfile.TemporaryDirectory(prefix="netns-all-reduce-") as name, lab(f"cgb{secrets.token_hex(2)}"):
        fast = beside(Path(name), options.sizes, options.pairs)
        told = [counted(Path(name), size) for size in options.sizes.split(",")]
    return 0 if fast and all(told) else 1


if __name__ == "__main__":
    sys.exit(main())
