"""Which code measured: one digest over the library and the probe folders."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout (or the folder the library is installed in)."""
FOLDERS = ("clustergauge", "kernels", "collectives", "storage_io")


def python_path(root: Path = ROOT) -> str:
    """``PYTHONPATH`` for processes of ours: the checkout at ``root`` first, then what ours has."""
    return os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])


def digest_of(modules: Iterable[str]) -> str:
    """The same over the files of other modules (probes of the user's own), found but not imported; empty for none."""
    total = hashlib.sha256()
    names = sorted(modules)
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and Path(spec.origin).is_file():
            total.update(name.encode() + b"\0" + Path(spec.origin).read_bytes())
    return total.hexdigest()[:16] if names else ""


@cache
def digest() -> str:
    """First 16 hex digits of the SHA-256 over names and contents of all source files that can change a result."""
    total = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".toml", ".cu", ".ll"} and path.is_file():
                content = path.read_bytes()
                total.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]
