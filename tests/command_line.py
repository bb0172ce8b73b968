"""The command line called in this process: it says what one of its own would, and nothing is started for it."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import run_suite

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def called(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Exit code, stdout and stderr; 120 columns.  Signals, folder, path and words are those of before again."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setenv("COLUMNS", "120")
        patch.chdir(cwd or Path.cwd())
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(sys, "argv", ["run_suite.py", *words])
        try:
            code = run_suite.main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(words, code, *said)
