"""TOML of files that people write and run folders keep: whatever is none is one line, never a traceback."""

from __future__ import annotations

import tomllib
from typing import Any


def parse(text: str) -> dict[str, Any]:
    """What it says.  Raises ``ValueError``, whose text says what is wrong and where."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("not TOML: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits is one, too
        raise ValueError(f"not TOML: {error}") from None
