"""Choosing cases by id, the same way everywhere: on the command line, in suites and in criteria."""

from __future__ import annotations

import fnmatch


def matches(glob: str, case: str) -> bool:
    """Whether the id of a case is meant.

    ``*`` crosses ``/``, and a glob must match all of the id; a plain word means "anywhere in it"; several parts
    (``matmul/backend=torch``) are whole parts of it, one after the other.
    """
    if any(c in glob for c in "*?["):
        return fnmatch.fnmatchcase(case, glob)
    return f"/{glob}/" in f"/{case}/" if "/" in glob else glob in case
