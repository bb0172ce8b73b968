"""The code gate of the CUDA C sources: compiles each for several architectures, with no GPU, and reads what came out.

``python -m kernels.cuda.nvrtc`` prints a line for each kernel and architecture and ends with 1 if something is wrong with one.
Needs NVRTC and its Python bindings (`INSTALL`), and ``cuobjdump``, which the triton wheel brings.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clustergauge.errors import UsageError
from kernels import cuda

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100a")
INSTALL = "pip install 'cuda-bindings>=13' 'nvidia-cuda-nvrtc>=13'"
OPTIONS = (*cuda.OPTIONS, "-ftz=true", "--device-as-default-execution-space")
"""What CuPy's RawModule passes (cupy/cuda/compiler.py), besides folders of headers, which our sources do not use."""
WIDTH = {
    "stream_write": (0, 16),
    "stream_copy": (16, 16),
    "stream_scale": (16, 16),
    "stream_add": (16, 16),
    "stream_triad": (16, 16),
    "stream_read": (16, 8),
    "cache_l1": (16, 4),
    "cache_l2": (16, 4),
    "chase": (8, 8),
    "sgemm_wide": (16, 16),
    "sgemm_ragged": (4, 16),
}
"""Bytes of the widest load and the widest store of global memory that each kernel must have."""


@dataclass(frozen=True)
class Facts:
    """What the compiler made of one kernel for one architecture.

    ``registers``: for each thread.  ``shared``: bytes for each block.  ``stack``: bytes for each thread (spilled registers, local
    arrays).  ``local``: instructions that access it.  ``generic``: accesses whose memory the compiler could not tell, which are
    slower.  ``load``, ``store``: bytes of the widest access of global memory, 0 for none.
    """

    kernel: str
    arch: str
    registers: int
    shared: int
    stack: int
    local: int
    generic: int
    load: int
    store: int

    def problems(self) -> list[str]:
        """What must not be, in words; empty for a good kernel."""
        wrong: list[str] = []
        if self.stack or self.local:
            wrong.append(f"{self.stack} bytes of stack, {self.local} accesses to it (spilled registers)")
        if self.generic:
            wrong.append(f"{self.generic} accesses to memory of an unknown kind")
        if (self.load, self.store) != WIDTH[self.kernel]:
            wrong.append(f"loads and stores of {self.load} and {self.store} bytes instead of %d and %d" % WIDTH[self.kernel])
        return [f"{self.kernel} on {self.arch}: {what}" for what in wrong]


def compile_source(text: str, name: str, arch: str) -> bytes:
    """The cubin of a source for an architecture such as ``sm_90a``.

    Raises ``ValueError`` with the compiler's words, `UsageError` if NVRTC is missing or too old for the architecture.
    """
    nvrtc = _bindings()
    program = _said(nvrtc, nvrtc.nvrtcCreateProgram(text.encode(), f"{name}.cu".encode(), 0, [], []))
    try:
        options = [option.encode() for option in (*OPTIONS, f"-arch={arch}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if status == nvrtc.nvrtcResult.NVRTC_ERROR_INVALID_OPTION:
            raise UsageError(f"this NVRTC does not know {arch}: {INSTALL}")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_said(nvrtc, nvrtc.nvrtcGetProgramLogSize(program)))
            _said(nvrtc, nvrtc.nvrtcGetProgramLog(program, log))
            raise ValueError(f"{name}.cu for {arch}: {log.rstrip(bytes(1)).decode(errors='replace').strip()}")
        cubin = bytearray(_said(nvrtc, nvrtc.nvrtcGetCUBINSize(program)))
        _said(nvrtc, nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def inspect(cubin: bytes, arch: str) -> list[Facts]:
    """What a cubin holds, kernel by kernel, in the order of their names."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)
    return sorted(read(usage, code, arch), key=lambda facts: facts.kernel)


def read(usage: str, code: str, arch: str) -> Iterator[Facts]:
    """From the text of ``cuobjdump -res-usage`` and ``cuobjdump -sass`` to facts."""
    bodies = {body.split(None, 1)[0]: body for body in re.split(r"\n\s*Function : ", code)[1:]}
    for kernel, line in re.findall(r"Function (\w+):\s*\n\s*(REG:.*)", usage):
        numbers = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}
        body = bodies[kernel]
        yield Facts(
            kernel=kernel,
            arch=arch,
            registers=numbers["REG"],
            shared=numbers["SHARED"],
            stack=numbers["STACK"] + numbers["LOCAL"],
            local=len(re.findall(r"\b(?:LDL|STL)\b", body)),
            generic=len(re.findall(r"\b(?:LD|ST)\.E\b", body)),
            load=_widest("LDG", body),
            store=_widest("STG", body),
        )


def _widest(instruction: str, body: str) -> int:
    """Bytes of the widest access of a kind: the number among its suffixes is bits, without one it is 32."""
    accesses = re.findall(rf"\b{instruction}\b((?:\.\w+)*)", body)
    return max((int((re.findall(r"\.[US]?(8|16|64|128|256)\b", suffixes) or ["32"])[0]) // 8 for suffixes in accesses), default=0)


def facts(architectures: tuple[str, ...] = ARCHITECTURES) -> list[Facts]:
    """All kernels of all sources on all architectures.  Raises as `compile_source` does."""
    return [
        found
        for name in cuda.SOURCES
        for arch in architectures
        for found in inspect(compile_source(cuda.source(name), name, arch), arch)
    ]


def table(found: list[Facts]) -> str:
    """One line for each."""
    head = ("kernel", "arch", "registers", "shared", "stack", "local", "generic", "load", "store")
    rows = [head, *((f.kernel, f.arch, *map(str, (getattr(f, name) for name in head[2:]))) for f in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = (
        "  ".join(f"{v:<{w}}" if i < 2 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(r, widths, strict=True))) for r in rows
    )
    return "".join(line.rstrip() + "\n" for line in lines)


def version() -> str:
    """NVRTC's version, such as ``13.0``.  Raises `UsageError` if it is missing."""
    nvrtc = _bindings()
    status, major, minor = nvrtc.nvrtcVersion()
    return f"{_said(nvrtc, (status, major))}.{minor}"


def _bindings() -> Any:
    """``cuda.bindings.nvrtc``, with the library loaded.  Raises `UsageError` saying what to install."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # loads the library
    except (ImportError, RuntimeError, OSError) as error:
        raise UsageError(f"NVRTC cannot be used ({str(error).splitlines()[0]}): {INSTALL}") from error
    return nvrtc


def _said(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """The value of an answer (status, value).  Raises ``RuntimeError`` for any status but success."""
    if answer[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"NVRTC: {answer[0].name}")
    return answer[1] if len(answer) > 1 else None


def _cuobjdump(*arguments: str) -> str:
    """What cuobjdump prints.  Raises `UsageError` if the triton wheel does not bring it."""
    spec = find_spec("triton")
    tool = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    if tool is None or not tool.exists():
        raise UsageError("cuobjdump is not there: pip install triton (its Linux wheel brings it)")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def main() -> int:
    """Print the table and the problems; 0 if there are none, 1 if there are, 2 if the tools are missing."""
    try:
        found = facts()
    except (UsageError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, UsageError) else 1
    problems = [problem for each in found for problem in each.problems()]
    sys.stdout.write(f"NVRTC {version()}\n{table(found)}")
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
