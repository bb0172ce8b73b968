"""What all verbs share: where this checkout is, exit codes, and what is said on stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
"""This checkout."""
OK, USAGE, BROKEN, UNSURE, INTERRUPTED = 0, 2, 3, 4, 130
"""Exit codes of the command line; those of results are in `clustergauge.exits`."""


def say(text: str) -> None:
    """A line on stderr, if there is one to write to."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def heed_signals() -> None:
    """SIGTERM and a lost terminal are treated like Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _terminate)


def _terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and a lost terminal are treated like Ctrl-C: what was measured is kept."""
    raise KeyboardInterrupt
