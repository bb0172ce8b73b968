"""What the flags hold results against: files of criteria and of ceilings, a baseline, a topology; and where suites are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clustergauge.errors import UsageError
from verbs.said import ROOT

if TYPE_CHECKING:
    from clustergauge.verdicts import Asked


def asked_of(options: argparse.Namespace, output: Path) -> Asked:
    """What the flags hold the results against, all of it at hand."""
    asked = given_by(options, output)
    check_baseline(options.accept, asked)
    return asked


def check_baseline(accept: str, asked: Asked) -> None:
    """Raises `UsageError` for the user's file of criteria that asks for a baseline where there is none."""
    if accept and asked.baseline is None and any(c.of_baseline for c in asked.acceptance.criteria):
        raise UsageError(f"{accept} asks for a share of a baseline: name one with --baseline RUN")


def given_by(options: argparse.Namespace, output: Path) -> Asked:
    """What the flags themselves hold the results against."""
    from clustergauge import catalogue, criteria, store
    from clustergauge.verdicts import Asked

    parts = catalogue.load(Path(options.ceilings)) if options.ceilings else None
    baseline = store.load(store.find_run(options.baseline, output)) if options.baseline else None
    if not options.accept:
        return Asked(criteria.NOTHING, baseline, parts)
    path = _accept_path(options.accept)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {options.accept}: {getattr(error, 'strerror', None) or error}") from None
    acceptance = criteria.parse(text, options.accept)
    return Asked(acceptance, baseline, parts, name=options.accept, text=text)


def _accept_path(name: str) -> Path:
    """A file, or the name of one that comes along."""
    own = ROOT / "suites" / "machines"
    if name.endswith(".toml") or "/" in name or Path(name).exists():
        return Path(name)
    if not (own / f"{name}.toml").exists():
        known = ", ".join(sorted(p.stem for p in own.glob("*.toml")))
        raise UsageError(f"--accept {name}: no such file, and no machine of that name (there are {known or 'none'})")
    return own / f"{name}.toml"


def suite_path(name: str) -> Path:
    """The file of a suite, by its path or by its name."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    path = ROOT / "suites" / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in (ROOT / "suites").glob("*.toml")))
        raise UsageError(f"unknown suite {name!r} (there are {known}; or name a .toml file)")
    return path


def leaves_in(path: str | None, hosts: Sequence[str] = ()) -> str:
    """The leaves of a topology file as a run remembers them; empty without one.  ``hosts``: some of which it must place."""
    if not path:
        return ""
    from clustergauge import topology

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    found = topology.parse(text, path)
    topology.check_fits(found, path, hosts)
    return found.text()
