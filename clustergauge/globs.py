"""Choosing cases by id, the same way everywhere: on the command line, in suites and in criteria."""

from __future__ import annotations

import fnmatch


def matches(glob: str, case: str) -> bool:
    """Whether the id of a case is meant: ``*`` crosses ``/``; a plain word means "anywhere in the id", a glob all of it."""
    return fnmatch.fnmatchcase(case, glob) if any(c in glob for c in "*?[") else glob in case
