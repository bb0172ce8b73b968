"""``python -m tests.bench.unaborted -m MODULE``: as ``python -m mpi4py -m MODULE``, but who ends badly takes nobody along.

``MPI_Abort``, by which that one ends the other ranks, has the launcher end all that it started, the session too.  Here whoever
started the ranks sees one go, and ends the others.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback


def main() -> None:
    """Run the module.  Where it fails nothing is finalized: that would wait for ranks that wait for this one."""
    try:
        runpy.run_module(sys.argv[2], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            _leave(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:  # noqa: BLE001 (whatever it is)
        traceback.print_exc()
        _leave(1)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
