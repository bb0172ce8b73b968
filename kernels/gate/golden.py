"""Golden facts: what was compiled when somebody last looked, kept per triton version, compared exactly.

The same triton (with its own LLVM and ptxas) makes the same code of the same kernel, so any difference has a cause: a changed
kernel or configuration.  Whoever changes one looks at the table and runs ``python -m kernels.gate --update``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from clustergauge.errors import UsageError
from kernels.gate.facts import Facts

FOLDER = Path(__file__).parent / "golden"

Kept = dict[str, dict[str, Facts]]
"""Facts by entry (``matmul bf16``) and target."""


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A golden file: the facts of one version of triton."""

    triton: str
    facts: Kept


def path_of(version: str, folder: Path = FOLDER) -> Path:
    """Where the facts of a version are; what a vendor appends to it (``+git…``) makes it another version."""
    return folder / f"triton-{re.sub(r'[^0-9A-Za-z.+-]', '_', version)}.json"


def versions(folder: Path = FOLDER) -> list[str]:
    """Versions with golden facts."""
    return sorted(path.stem.removeprefix("triton-") for path in folder.glob("triton-*.json"))


def load(version: str, folder: Path = FOLDER) -> Golden | None:
    """None if there is none for this version.  Raises `UsageError` for a file that is not one."""
    path = path_of(version, folder)
    try:
        golden = msgspec.json.decode(path.read_bytes(), type=Golden)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise UsageError(f"{path}: not a golden file: {error} (write it anew with --update)") from error
    if golden.triton != version:
        raise UsageError(f"{path}: is of triton {golden.triton}, not {version} (write it anew with --update)")
    return golden


def save(golden: Golden, folder: Path = FOLDER) -> Path:
    """One line for each entry and target, so that a diff shows what changed."""
    path = path_of(golden.triton, folder)
    blocks = [
        f"  {json.dumps(entry)}: {{\n"
        + ",\n".join(f"   {json.dumps(target)}: {_line(facts)}" for target, facts in golden.facts[entry].items())
        + "\n  }"
        for entry in sorted(golden.facts)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'{{"triton": {json.dumps(golden.triton)},\n "facts": {{\n' + ",\n".join(blocks) + "\n }}\n", encoding="utf-8"
    )
    return path


def _line(facts: Facts) -> str:
    return json.dumps(msgspec.to_builtins(facts, str_keys=True), ensure_ascii=False)


def differences(now: Facts, then: Facts) -> list[str]:
    """What changed, in words: ``registers 184, golden 176``."""
    found: list[str] = []
    for field in Facts.__struct_fields__:
        new, old = getattr(now, field), getattr(then, field)
        if new != old:
            found.append(f"{field.replace('_', ' ')} {_words(new)}, golden {_words(old)}")
    return found


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " + ".join(f"{count}×{name}" for name, count in value.items()) or "none"
    if isinstance(value, tuple):
        return "; ".join(value) or "none"
    return str(value)
