"""Text inside Markdown: what a run folder says is never markup."""

from __future__ import annotations

import html
import re

from clustergauge.valid import printable

_MARKS = re.compile(r"([\\`*_{}\[\]()#!|~])")


def cell(text: str) -> str:
    """The text as one cell of a table, or a part of a line: on one line, with every mark escaped, nothing that HTML reads."""
    plain = " ".join(printable(text).split())
    return _MARKS.sub(r"\\\1", html.escape(plain, quote=False))
