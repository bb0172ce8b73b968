#!/usr/bin/env python3
"""ClusterGauge: one command measures what this machine reaches and says what is bad.

The front door: words become a verb of `verbs`, and whatever it raises a line and an exit code.  It imports no device library:
cases run in workers of their own.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `main` can say what became of the run

import importlib
import os
import sys
from collections.abc import Sequence

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120 (python -P and -I leave it out)

from clustergauge.errors import UsageError
from clustergauge.flags import VERBS, make_parser
from verbs.said import BROKEN, INTERRUPTED, OK, USAGE, say

ROOMS = {
    "run": "measuring",
    "list": "measuring",
    "report": "judging",
    "accept": "judging",
    "verify": "judging",
    "compare": "comparing",
    "fleet": "fleet",
    "selftest": "gauging",
    "schema": "gauging",
}
"""The module of `verbs` that carries out each verb, as ``do_VERB``; the others are not loaded."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
            words.insert(0, "run")
        elif words[0] not in (*VERBS, "-h", "--help", "--version"):
            raise UsageError(f"unknown verb {words[0]!r} (there are {', '.join(VERBS)}; flags go after it)")
        options = make_parser().parse_args(words)
        room = importlib.import_module(f"verbs.{ROOMS[options.verb]}")
        code: int = getattr(room, f"do_{options.verb}")(options)
        sys.stdout.flush()
    except UsageError as error:
        say(f"run_suite.py: {error}")
        return USAGE
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # `| head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return OK
        where = error.filename or ("cannot write to stdout" if _stdout_fails() else "")
        say(f"run_suite.py: {f'{where}: ' if where else ''}{error.strerror or error}")
        return BROKEN
    except MemoryError:
        say("run_suite.py: out of memory (is there a limit? ulimit -v)")
        return BROKEN
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    return code


def _stdout_fails() -> bool:
    """Whether not even a line's end can be written to stdout; then it leads nowhere from now on."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _open_closed() -> None:
    """Streams that were closed for us (``>&-``) lead nowhere; otherwise our own files would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: PTH123,SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: PTH123,SIM115


if __name__ == "__main__":
    sys.exit(main())
