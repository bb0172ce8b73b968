"""What the compiler made: facts read out of ptxas' log, PTX, SASS and AMD assembly.  Pure functions of text."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import msgspec


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One compiled kernel.

    ``warps``: of a block, those that warp specialisation adds included.  ``registers``: of a thread (on AMD, VGPR and AGPR
    together).  ``spilled_bytes``: what a thread must put elsewhere for want of registers (on AMD, of scalar ones too).
    ``stack_bytes``: its local memory, spilled or declared.  ``shared_bytes``: of a block.  ``tmem_columns``: tensor memory of
    a block.  ``scratch_bytes``: global memory that a launch would have to be given for each program.  ``tensor``: tensor-core
    instructions (with shape, types and, for tcgen05, PTX's kind) → occurrences.  ``loads``, ``stores``: global accesses,
    width in bits → occurrences.  ``copies``: asynchronous ones, into shared memory (name and width in bits) or of tensors
    (name) → occurrences.  ``advisories``: what ptxas warns about.
    """

    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    stack_bytes: int = 0
    tmem_columns: int = 0
    scratch_bytes: int = 0
    tensor: dict[str, int] = {}
    loads: dict[int, int] = {}
    stores: dict[int, int] = {}
    copies: dict[str, int] = {}
    advisories: tuple[str, ...] = ()


class Unreadable(ValueError):
    """A fact is not where it should be: it is unknown, never zero."""


BULK_LOAD = ("UTMALDG",)
"""Tensor copies (TMA) into shared memory."""
BULK = frozenset({*BULK_LOAD, "UTMASTG", "UTMAREDG", "UBLKCP"})
_TENSOR = re.compile(r"[HIQDBO]G?MMA|UTC\w*MMA")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)", re.M)
_WIDTH = re.compile(r"\.(256|128|64)(?![0-9A-Za-z])|\.[US](16|8)(?![0-9A-Za-z])")


def nvidia(warps: int, shared: int, tmem: int, log: str, ptx: str, sass: str) -> Facts:
    """Facts of a kernel for NVIDIA.  Raises `Unreadable` if the log has no registers or spills, or the SASS no instruction."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if not frames:  # one for the kernel, one more for each function that is not inlined
        raise Unreadable("no spills in the log of ptxas")
    operations = _SASS.findall(sass)
    if not operations:
        raise Unreadable("no instruction in the SASS")
    tensor: Counter[str] = Counter()
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    copies: Counter[str] = Counter()
    kinds = " ".join(sorted(set(re.findall(r"\btcgen05\.mma\S*\.(kind::\w+)", ptx))))
    for operation in operations:
        name = operation.partition(".")[0]
        if _TENSOR.fullmatch(name):
            tensor[f"{operation} {kinds}".strip() if name.startswith("UTC") else operation] += 1
        elif name == "LDG":
            loads[_width(operation)] += 1
        elif name == "STG":
            stores[_width(operation)] += 1
        elif name == "LDGSTS":
            copies[f"{name} {_width(operation)}"] += 1
        elif name in BULK:
            copies[name] += 1
    return Facts(
        warps=warps,
        registers=_the(r"Used (\d+) registers", log, "registers in the log of ptxas"),
        spilled_bytes=sum(max(int(stored), int(loaded)) for _, stored, loaded in frames),
        shared_bytes=shared,
        stack_bytes=sum(int(stack) for stack, _, _ in frames),
        tmem_columns=tmem,
        tensor=_sorted(tensor),
        loads=_sorted(loads),
        stores=_sorted(stores),
        copies=_sorted(copies),
        advisories=advisories(log),
    )


def _width(operation: str) -> int:
    """Bits of a SASS access: ``LDG.E.128`` says so, ``LDG.E`` means 32.  ``LTC128B`` is a hint to the cache."""
    found = _WIDTH.search(operation)
    return int(found[1] or found[2]) if found else 32


def advisories(log: str) -> tuple[str, ...]:
    """What ptxas warns about, without paths, line numbers and names, each once."""
    found: set[str] = set()
    for line in log.splitlines():
        if re.search(r"warning|advisory|Potential Performance Loss|serializ", line, re.I):
            text = re.sub(r"^\s*ptxas(-\w+)?\s*(\S+, line \d+\s*;)?\s*", "", line.strip())
            text = re.sub(r"^(info|warning)\s*:\s*", "", text, flags=re.I)
            found.add(re.sub(r"'[^']*'", "'…'", text))
    return tuple(sorted(found))


_AMD_WIDTH = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "byte": 8}
_AMD_OPERATION = re.compile(r"^\s+([a-z][a-z0-9_]+)([^\n]*)", re.M)
_AMD_ACCESS = re.compile(r"(?:buffer|global|flat)_(load|store)_(lds_)?[us]?(dwordx[234]|dword|short|byte)(?:_d16)?(?:_hi)?")


def amd(warps: int, shared: int, asm: str) -> Facts:
    """Facts of a kernel for AMD.  Raises `Unreadable` if the metadata lacks registers or spills, or there is no instruction."""
    metadata = asm.partition(".amdgpu_metadata")[2]
    counts = {
        name: _the(rf"\.{name}:\s+(\d+)", metadata, f"{name} in the metadata")
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    }
    tensor: Counter[str] = Counter()
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    copies: Counter[str] = Counter()
    instructions = 0
    for operation, rest in _AMD_OPERATION.findall(asm):
        instructions += operation.startswith(("s_", "v_"))
        access = _AMD_ACCESS.fullmatch(operation)
        if operation.startswith(("v_mfma_", "v_smfmac_", "v_wmma_")):
            tensor[operation] += 1
        elif access and (access[2] or re.search(r"\blds\b", rest.partition(";")[0])):
            copies[f"load_lds {_AMD_WIDTH[access[3]]}"] += 1
        elif access:
            (loads if access[1] == "load" else stores)[_AMD_WIDTH[access[3]]] += 1
    if not instructions:
        raise Unreadable("no instruction in the assembly")
    return Facts(
        warps=warps,
        registers=counts["vgpr_count"],
        spilled_bytes=4 * (counts["vgpr_spill_count"] + counts["sgpr_spill_count"]),
        shared_bytes=shared,
        stack_bytes=counts["private_segment_fixed_size"],
        tensor=_sorted(tensor),
        loads=_sorted(loads),
        stores=_sorted(stores),
        copies=_sorted(copies),
    )


def _the(pattern: str, text: str, what: str) -> int:
    """The number in the one place where the pattern matches."""
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise Unreadable(f"{'more than one place with' if found else 'no'} {what}")
    return int(found[0])


def _sorted(counter: Counter[Any]) -> dict[Any, int]:
    return dict(sorted(counter.items()))


def widths(facts: Facts, kind: str) -> list[int]:
    """Bits of all global ``loads`` (asynchronous copies too) or ``stores``; a tensor copy counts as 128."""
    if kind == "stores":
        bulk = [128 for name in facts.copies if name in BULK and name not in BULK_LOAD]
        return [*facts.stores, *bulk]
    sized = [int(name.partition(" ")[2]) for name in facts.copies if " " in name]
    return [*facts.loads, *sized, *(128 for name in facts.copies if name in BULK_LOAD)]
