"""The native kernels as text in LLVM's language, and machine code made of it for the processor at hand.

The text moves vectors of 32 bytes, which LLVM splits where the processor's are shorter (SSE2, NEON).  They are no longer where
there is AVX-512: with 64 bytes add, triad and read were 5 % slower on Zen 4.  Nothing allows LLVM to fuse a multiplication with
an addition: every result is rounded as in plain float64.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

OPS = {"read": "b", "write": "", "copy": "b", "scale": "b", "add": "bc", "triad": "bc"}
"""The operations, and the arrays that each reads."""
LINE = 64
"""Bytes of a cache line: what arrays begin at a multiple of."""
ITEM = 8
WIDTH = 4
"""Items in a vector."""
VECTOR = f"<{WIDTH} x double>"
UNROLL = 8
"""Vectors of each array in one turn of a loop; the sums of ``read`` that run side by side."""
PER_BLOCK = UNROLL * WIDTH
"""Items in what one turn moves of each array."""
AHEAD = 2048
"""Bytes ahead of its loads that an operation which also stores asks for: up to 15 % faster on Zen 4, where the lines that
non-temporal stores send out leave the hardware's own prefetcher too little room.  Pure reads are no faster for it."""
AHEAD_ON: Mapping[str, int] = {"znver3": 0}
"""Where another distance is better, by LLVM's name of the processor; 0: nothing is asked for.  On Zen 3 asking made triad and
add 10 to 18 % slower and left copy and scale as they were."""
LIBC = ("sched_getaffinity", "sched_setaffinity", "sem_init", "sem_post", "sem_trywait", "sem_wait")
MASK = 1024
"""Bytes of a set of processors."""
SPINS = 20_000
"""Looks at its semaphore after which a thread goes to sleep: some 0.2 to 1 ms."""
PROCESSORS: Mapping[str, Mapping[str, str]] = {
    "x86_64": {
        "declared": "declare void @llvm.x86.sse.sfence()\ndeclare void @llvm.x86.sse2.pause()",
        "fence": "call void @llvm.x86.sse.sfence()",
        "pause": "call void @llvm.x86.sse2.pause()",
    },
    "aarch64": {
        "declared": "declare void @llvm.aarch64.hint(i32)",
        "fence": "fence seq_cst",
        "pause": "call void @llvm.aarch64.hint(i32 1)",
    },
}
"""What differs between the processors served."""


@functools.cache
def _engine() -> Any:
    """The machine code, made once for each process."""
    from llvmlite import binding

    machine = host()
    libc = ctypes.CDLL(None)
    for name in LIBC:
        binding.add_symbol(name, ctypes.cast(getattr(libc, name), ctypes.c_void_p).value)
    module = binding.parse_assembly(text(machine.triple, ahead()))
    module.verify()
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def address(name: str) -> int:
    """Where the machine code of a function begins.  Raises what llvmlite raises."""
    return _engine().get_function_address(name)


def host() -> Any:
    """The processor at hand as llvmlite's target machine."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3, jit=True
    )


def ahead() -> int:
    """Bytes ahead of its loads that an operation which also stores asks for on the processor at hand."""
    from llvmlite import binding

    return AHEAD_ON.get(binding.get_host_cpu_name(), AHEAD)


def text(triple: str, ahead: int = AHEAD) -> str:
    """All of the program.  ``triple``: of the processor, as LLVM writes it (``x86_64-unknown-linux-gnu``)."""
    own = PROCESSORS[triple.split("-", maxsplit=1)[0]]
    team = Template(_beside("team.ll")).substitute(own, mask=MASK, spins=SPINS)
    return "\n".join(
        [f'target triple = "{triple}"', team, _beside("caches.ll"), *(kernel(op, ahead) for op in OPS), "!0 = !{i32 1}", ""]
    )


def _beside(name: str) -> str:
    """A file of this folder."""
    return Path(__file__).with_name(name).read_text(encoding="ascii")


def kernel(op: str, ahead: int) -> str:
    """One operation on blocks ``low`` to ``high`` and on ``tail`` items after them; ``read`` leaves its sum in a[me]."""
    return "\n".join(
        [
            f"define void @{op}(ptr %a, ptr %b, ptr %c, i64 %low, i64 %high, i64 %tail, double %s, i64 %me) {{",
            "entry:",
            f"  %s.0 = insertelement {VECTOR} poison, double %s, i32 0",
            f"  %s.all = shufflevector {VECTOR} %s.0, {VECTOR} poison, <{WIDTH} x i32> zeroinitializer",
            f"  %first = mul i64 %low, {UNROLL}",
            f"  %whole = mul i64 %high, {UNROLL}",
            f"  %items = mul i64 %whole, {WIDTH}",
            "  %end = add i64 %items, %tail",
            "  br label %block",
            *_loop(op, "block", UNROLL, VECTOR, ("%first", "%whole"), "zeroinitializer", ("entry", "between"), ahead),
            "between:",
            *_total(op),
            "  br label %rest",
            *_loop(op, "rest", 1, "double", ("%items", "%end"), "%total", ("between", "done"), 0),
            "done:",
            *(
                ["  %mine = getelementptr double, ptr %a, i64 %me", "  store double %rest.sum.0, ptr %mine"]
                if op == "read"
                else []
            ),
            "  ret void",
            "}",
        ]
    )


def _total(op: str) -> list[str]:
    """The running sums of the blocks, added up."""
    if op != "read":
        return []
    lines = [f"  %added.0 = fadd {VECTOR} %block.sum.0, zeroinitializer"]
    lines += [f"  %added.{k} = fadd {VECTOR} %added.{k - 1}, %block.sum.{k}" for k in range(1, UNROLL)]
    return [*lines, f"  %total = call double @llvm.vector.reduce.fadd.v{WIDTH}f64(double 0.0, {VECTOR} %added.{UNROLL - 1})"]


def _loop(
    op: str, name: str, step: int, kind: str, span: tuple[str, str], zero: str, labels: tuple[str, str], ahead: int
) -> list[str]:
    """A loop over values of ``kind`` (vectors or items), ``step`` of them a turn, as long as they fit into ``span``.

    ``zero``: what running sums begin with.  ``labels``: where it comes from and goes to; it begins at ``name``.
    ``ahead``: how many bytes ahead of its loads it asks for lines, 0 for not at all.
    """
    vector = kind == VECTOR
    align, hint, scalar = (WIDTH * ITEM, ", !nontemporal !0", "%s.all") if vector else (ITEM, "", "%s")
    phis: list[str] = []
    turn: list[str] = []
    for k in range(step):
        at = f"%{name}.{k}"
        turn.append(f"  {at} = add i64 %{name}.i, {k}")
        for array in OPS[op]:
            turn.append(f"  {at}.{array}.at = getelementptr {kind}, ptr %{array}, i64 {at}")
            if ahead and op != "read" and k * WIDTH * ITEM % LINE == 0:
                turn.append(f"  {at}.{array}.ahead = getelementptr i8, ptr {at}.{array}.at, i64 {ahead}")
                turn.append(f"  call void @llvm.prefetch.p0(ptr {at}.{array}.ahead, i32 0, i32 3, i32 1)")
            turn.append(f"  {at}.{array} = load {kind}, ptr {at}.{array}.at, align {align}")
        b, c, product = f"{at}.b", f"{at}.c", f"{at}.product"
        if op == "read":
            phis.append(f"  %{name}.sum.{k} = phi {kind} [{zero}, %{labels[0]}], [{at}.sum, %{name}.turn]")
            turn.append(f"  {at}.sum = fadd {kind} %{name}.sum.{k}, {b}")
            continue
        if op in {"scale", "triad"}:
            turn.append(f"  {product} = fmul {kind} {scalar}, {c if op == 'triad' else b}")
        if op in {"add", "triad"}:
            turn.append(f"  {at}.both = fadd {kind} {b}, {c if op == 'add' else product}")
        result = {"write": scalar, "copy": b, "scale": product}.get(op, f"{at}.both")
        turn.append(f"  {at}.a.at = getelementptr {kind}, ptr %a, i64 {at}")
        turn.append(f"  store {kind} {result}, ptr {at}.a.at, align {align}{hint}")
    return [
        f"{name}:",
        f"  %{name}.i = phi i64 [{span[0]}, %{labels[0]}], [%{name}.next, %{name}.turn]",
        *phis,
        f"  %{name}.next = add i64 %{name}.i, {step}",
        f"  %{name}.fits = icmp ule i64 %{name}.next, {span[1]}",
        f"  br i1 %{name}.fits, label %{name}.turn, label %{labels[1]}",
        f"{name}.turn:",
        *turn,
        f"  br label %{name}",
    ]
