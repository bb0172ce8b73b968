"""The errors a person is told in one line."""

from __future__ import annotations

import traceback
from pathlib import Path


class UsageError(ValueError):
    """The user's mistake: one line, exit code 2."""


def unexpected(error: Exception) -> str:
    """What nobody foresaw, and where it happened, in words."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} ({Path(at.filename).name} line {at.lineno}): {error}"
