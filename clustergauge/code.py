"""Which code measured: one digest over the library and the probe folders."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout (or the folder the library is installed in)."""
FOLDERS = ("clustergauge", "kernels", "collectives", "storage_io")


@cache
def digest() -> str:
    """First 16 hex digits of the SHA-256 over names and contents of all source files that can change a result."""
    total = hashlib.sha256()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in {".py", ".toml", ".cu"} and path.is_file():
                content = path.read_bytes()
                total.update(f"{path.relative_to(ROOT)}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]
