"""What fails whatever the golden facts say, in words."""

from __future__ import annotations

import msgspec

from kernels.gate.entry import Entry
from kernels.gate.facts import BULK, Facts, widths
from kernels.gate.targets import MOST_THREADS, REGISTER_STEP, Target, tensor_instruction

_HAVE_TENSOR_COPIES = {"sm90", "sm100", "sm120"}


def problems(entry: Entry, target: Target, facts: Facts) -> list[str]:
    """Spills, missing instructions, and resources that no block of the target has: with those, a launch raises or crawls."""
    return [*_spills(facts), *_resources(target, facts), *_expected(entry, target, facts)]


def _spills(facts: Facts) -> list[str]:
    return [f"{facts.spilled_bytes} bytes of registers spilled"] if facts.spilled_bytes else []


def _resources(target: Target, facts: Facts) -> list[str]:
    found: list[str] = []
    if facts.shared_bytes > target.shared_bytes:
        found.append(f"{facts.shared_bytes} bytes of shared memory, {target.name} has {target.shared_bytes}")
    if facts.tmem_columns > target.tmem_columns:
        found.append(f"{facts.tmem_columns} columns of tensor memory, {target.name} has {target.tmem_columns}")
    if facts.scratch_bytes:
        found.append(f"{facts.scratch_bytes} bytes of global memory a program, and no launch of ours gives it any")
    if facts.warps * target.lanes > MOST_THREADS:
        found.append(f"{facts.warps} warps, {target.name} runs {MOST_THREADS // target.lanes} in a block")
    if facts.registers > target.thread_registers:
        found.append(f"{facts.registers} registers a thread, {target.name} has {target.thread_registers}")
    dealt = -(-facts.registers // REGISTER_STEP) * REGISTER_STEP
    a_pool = -(-facts.warps // target.pools) * target.lanes * dealt
    if a_pool * target.pools > target.register_file:
        threads = facts.warps * target.lanes
        found.append(f"{facts.registers} registers × {threads} threads, a block on {target.name} has {target.register_file}")
    return found


def _expected(entry: Entry, target: Target, facts: Facts) -> list[str]:
    expects = entry.expects
    found: list[str] = []
    if expects.tensor:
        wanted = tensor_instruction(target, expects.tensor, narrow=expects.narrow)
        if not any(wanted.match(operation) for operation in facts.tensor):
            instead = ", ".join(facts.tensor) or "none"
            found.append(f"no tensor-core instruction for {expects.tensor} (found: {instead})")
    for kind in sorted(expects.wide):
        narrowest = min(widths(_without_scalars(facts, expects.scalars), kind), default=0)
        if narrowest < 128:
            found.append(f"{kind} of {narrowest // 8} bytes where 16 are expected" if narrowest else f"no {kind}")
    if expects.bulk and target.name in _HAVE_TENSOR_COPIES and not BULK & set(facts.copies):
        found.append("no tensor copy (TMA)")
    return found


def _without_scalars(facts: Facts, most: int) -> Facts:
    """Without the narrow loads, if together they are at most so many bytes."""
    narrow = sum(bits * count for bits, count in facts.loads.items() if bits < 128)
    if narrow > 8 * most:
        return facts
    return msgspec.structs.replace(facts, loads={bits: count for bits, count in facts.loads.items() if bits >= 128})
