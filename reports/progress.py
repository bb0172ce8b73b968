"""How a run goes, on stderr: a live line with the time left on a terminal, otherwise a plain line for each case that ended.

Whatever happens to stderr (closed, gone, full), the run goes on.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from typing import TYPE_CHECKING, TextIO, cast

from clustergauge.hosts import spans
from clustergauge.model import Planned, Record
from clustergauge.units import format_duration
from clustergauge.valid import printable
from reports.layout import fit, fit_end, width_of

if TYPE_CHECKING:
    from rich.progress import Progress as Bar, TaskID

WORDS = {"ok": "ok", "verified": "verified", "skipped": "skipped", "wrong": "WRONG", "error": "ERROR"}
BAR = 20
"""Cells of the bar."""
REASON = 200
"""Cells of a reason on a plain line."""


def time_left(done: int, total: int, elapsed: float, expected: float) -> float:
    """Seconds until the end: at first what was ``expected`` in all, the more the further it goes what was seen so far."""
    if done >= total or total <= 0:
        return 0.0
    share = done / total
    seen = elapsed / share if done else 0.0
    return max(0.0, (1 - share) * expected + share * seen - elapsed)


class Progress:
    """The display of one run.  Every call is safe at any time, in any order, and more than once; none of them raises."""

    def __init__(self) -> None:
        self._stream = cast("TextIO", _Quiet(sys.stderr))
        self._total = self._done = 0
        self._expected = 0.0
        self._began = self._case_began = time.monotonic()
        self._case = ""
        self._of_nodes = False
        self._live: tuple[Bar, TaskID] | None = None

    def start(self, total: int, seconds: float) -> None:
        """So many cases begin, expected to take so many seconds."""
        self.stop()
        self._total, self._done, self._expected = total, 0, seconds
        self._began = self._case_began = time.monotonic()
        if self._stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown"):
            self._live = self._bar()

    def case(self, planned: Planned) -> None:
        """A case starts."""
        self._case_began = time.monotonic()
        self._case = _name(planned)
        self._of_nodes = self._of_nodes or bool(planned.hosts)
        self._show()

    def done(self, record: Record) -> None:
        """A case ended."""
        took = time.monotonic() - self._case_began if self._case == _name(record) else None
        self._case = ""
        self._done += 1
        if self._live is None:
            self._stream.write(self._line(record, took) + "\n")
            self._stream.flush()
        elif record.status in ("wrong", "error"):
            from rich.text import Text

            line = fit_end(self._line(record, took), max(1, width_of(self._stream) - 1))
            self._live[0].console.print(Text(line, style="red", no_wrap=True))
        self._show()

    def stop(self) -> None:
        """No more cases: the live line goes, and leaves the terminal as it was."""
        live, self._live = self._live, None
        if live:
            with contextlib.suppress(OSError, ValueError):
                live[0].stop()

    def _line(self, record: Record, took: float | None) -> str:
        """``[3/41] ok matmul/backend=torch/dtype=fp32/shape=1024 1.2 s``."""
        of = f"/{self._total}" if self._total else ""
        time_text = f" {took:.1f} s" if took is not None else ""
        why = " ".join(printable(record.reason[: 4 * REASON]).split()) if record.status in ("wrong", "error", "skipped") else ""
        here = record.placement[0].host if self._of_nodes and record.placement and not spans(record.device) else ""
        name = _name(record) + (f" on {printable(here)}" if here else "")
        return f"[{self._done}{of}] {WORDS[record.status]} {name}{time_text}{f': {fit_end(why, REASON)}' if why else ''}"

    def _show(self) -> None:
        if self._live:
            bar, task = self._live
            with contextlib.suppress(OSError, ValueError):
                bar.update(task, completed=self._done, description=self._case, refresh=True)

    def _left(self) -> str:
        left = time_left(self._done, self._total, time.monotonic() - self._began, self._expected)
        return f"about {format_duration(max(1, round(left)))} left" if self._done < self._total else ""

    def _bar(self) -> tuple[Bar, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bar, ProgressColumn, Task
        from rich.text import Text

        progress = self

        class Line(ProgressColumn):
            """How many of how many, the time left, and the case that runs."""

            max_refresh = 0.5

            def render(self, task: Task) -> Text:
                count = f"{int(task.completed)}/{int(task.total or 0)}"
                words = " · ".join(filter(None, (count, progress._left())))
                room = width_of(progress._stream) - BAR - 2 - len(words) - 3
                name = f" · {fit(task.description, room)}" if task.description else ""
                return Text(words + name, no_wrap=True)

        console = Console(file=self._stream, force_terminal=True, markup=False, highlight=False, emoji=False)
        # One repaint a second: a busier display would take time from what is being measured.
        bar = Bar(
            BarColumn(bar_width=BAR),
            Line(),
            console=console,
            transient=True,
            refresh_per_second=1,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = bar.add_task("", total=self._total)
        bar.start()
        return bar, task


def _name(what: Planned | Record) -> str:
    device = "" if what.device == "cpu:0" else f" {what.device}"
    launch = f" launch {what.launch}" if what.launch else ""
    return printable(f"{what.case}{device}{launch}")


class _Quiet(io.TextIOBase):
    """A text stream that swallows what cannot be written."""

    def __init__(self, stream: TextIO | None) -> None:
        self._under = stream

    def write(self, s: str, /) -> int:
        if self._under is not None:
            with contextlib.suppress(OSError, ValueError):
                encoding = self._under.encoding or "utf-8"
                self._under.write(s.encode(encoding, "replace").decode(encoding))
        return len(s)

    def flush(self) -> None:
        if self._under is not None:
            with contextlib.suppress(OSError, ValueError):
                self._under.flush()

    def isatty(self) -> bool:
        try:
            return self._under is not None and self._under.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        if self._under is None:
            raise OSError("no stream")
        return self._under.fileno()
