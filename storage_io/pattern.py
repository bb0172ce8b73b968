"""Data for storage cases: incompressible, every 4 KiB different from every other, and telling whose it is.

16 MiB of random bytes (or as many as a `Pattern` is told), new for every run, repeated; over each 4 KiB of them a stamp of four
64-bit words: run, file, number of the block in its file, and the sample that wrote it.  So nothing can be compressed,
deduplicated, lost, stale or misplaced unnoticed.  Arrays are one-dimensional, ``uint64``, whole 4 KiB blocks.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustergauge.probe import Wrong
from clustergauge.units import format_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]
    Numbers = NDArray[np.int64]

STAMP_EVERY = 4096
BASE_BYTES = 16 << 20
_ROW = STAMP_EVERY // 8
_ROWS_AT_ONCE = 256
"""Blocks that are verified at once: what is expected stays in a cache."""
POISON = 0xA5A5A5A5A5A5A5A5
HUGE_PAGE = 2 << 20
"""Bytes; other machines than x86 and most of Arm have larger ones, on which such a buffer then does not lie."""


def aligned(size: int) -> Words:
    """A page-aligned buffer of zeros, as direct I/O needs it, on huge pages where the kernel gives them.  ``size``: bytes.

    A transfer from scattered 4 KiB pages has as many segments as pages, and a device takes so many at a time (254 on a virtio
    disk, which read 1.3 GB/s into such a buffer and 3.3 GB/s into a huge page).  A huge page is had whole, at its own boundary.
    """
    import numpy as np

    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    buffer = mmap.mmap(-1, whole + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        buffer.madvise(mmap.MADV_HUGEPAGE)
    start = -np.frombuffer(buffer, np.uint64).ctypes.data % HUGE_PAGE
    return np.frombuffer(buffer, np.uint64, size // 8, start)


def unstamped(size: int) -> str:
    """Why so many bytes cannot bear stamps, in words; empty where they can."""
    whole = size >= STAMP_EVERY and size % STAMP_EVERY == 0
    return "" if whole else f"{format_size(size)} is not a whole number of 4 KiB blocks"


class Pattern:
    """The data of one run.

    ``seed``: for processes that must know each other's; it has to be new for every run.  ``period``: bytes after which it repeats
    itself but for the stamps, whole 4 KiB; not less than a file system compresses at once.
    """

    def __init__(self, seed: int | None = None, period: int = BASE_BYTES) -> None:
        import numpy as np

        random = os.urandom if seed is None else np.random.default_rng(seed).bytes
        self._run = np.frombuffer(random(8), np.uint64)[0]
        self._base = np.frombuffer(random(period), np.uint64)
        self._expected = self._base.copy()

    def fill(self, out: Words, file: int, sample: int, offset: int = 0) -> None:
        """The content of a file from byte ``offset`` on, a multiple of 4 KiB."""
        position, done = offset // 8, 0
        while done < len(out):
            at = (position + done) % len(self._base)
            part = out[done : done + len(self._base) - at]
            part[:] = self._base[at : at + len(part)]
            self._stamp(part, file, (position + done) // _ROW, sample)
            done += len(part)

    def fill_rows(self, out: Words, rows: Numbers, file: int, samples: Numbers) -> None:
        """Blocks of 4 KiB that lie anywhere: ``rows`` are their numbers in the file, ``samples`` which sample each is of."""
        content = out.reshape(-1, _ROW)
        content[:] = self._base.reshape(-1, _ROW)[rows % (len(self._base) // _ROW)]
        content[:, 0], content[:, 1], content[:, 2], content[:, 3] = self._run, file, rows, samples

    def verify_rows(self, got: Words, rows: Numbers, path: Path | str, file: int, samples: Numbers) -> None:
        """Raise `Wrong`, naming file and byte, unless ``got`` is what `fill_rows` makes of the same numbers."""
        import numpy as np

        content, step = got.reshape(-1, _ROW), _ROWS_AT_ONCE
        scratch = np.empty((min(step, len(rows)), _ROW), np.uint64)
        for start in range(0, len(rows), step):
            part, numbers = content[start : start + step], rows[start : start + step]
            want = scratch[: len(numbers)]
            self.fill_rows(want.reshape(-1), numbers, file, samples[start : start + step])
            if not np.array_equal(part, want):
                wrong: Any = np.flatnonzero((part != want).any(axis=1))
                first = wrong[0]
                raise Wrong(_explain(part[first], want[first], path, int(numbers[first]) * STAMP_EVERY, len(wrong)))

    def restamp(self, content: Words, sample: int) -> None:
        """Make the whole content of a file that of another sample."""
        content.reshape(-1, _ROW)[:, 3] = sample

    def verify(self, got: Words, path: Path | str, file: int, sample: int, offset: int = 0) -> None:
        """Raise `Wrong`, naming file and byte, unless ``got`` is the content at byte ``offset`` (a multiple of 4 KiB)."""
        import numpy as np

        position, done = offset // 8, 0
        while done < len(got):
            at = (position + done) % len(self._base)
            part = got[done : done + len(self._base) - at]
            want = self._expected[at : at + len(part)]
            self._stamp(want, file, (position + done) // _ROW, sample)
            if not np.array_equal(part, want):
                raise Wrong(_explain(part, want, path, offset + 8 * done))
            done += len(part)

    def _stamp(self, out: Words, file: int, first: int, sample: int) -> None:
        import numpy as np

        rows = out.reshape(-1, _ROW)
        rows[:, 0], rows[:, 1], rows[:, 3] = self._run, file, sample
        rows[:, 2] = np.arange(first, first + len(rows), dtype=np.uint64)


def stamped(content: Words) -> memoryview:
    """Where the content of a file tells the number of each 4 KiB: 64-bit words that can be set."""
    return content.data[2::_ROW]


def forget(content: Words) -> None:
    """Change every 4 KiB of memory so that it is of no file: what was verified once is not to be taken for what is read next."""
    content.reshape(-1, _ROW)[:, 2] = POISON


def _explain(got: Words, want: Words, path: Path | str, offset: int, bad: int | None = None) -> str:
    """What is wrong, from the first byte that differs.  ``bad``: blocks that are, where more than these were looked at."""
    import numpy as np

    found, due = got.view(np.uint8), want.view(np.uint8)
    differ: Any = found != due
    first = int(differ.argmax())
    bad = int(differ.reshape(-1, STAMP_EVERY).any(axis=1).sum()) if bad is None else bad
    text = f"{path} differs at byte {offset + first}: expected {due[first]:#04x}, got {found[first]:#04x}"
    row = first // STAMP_EVERY * _ROW
    (run, *place), (own, *home) = got[row : row + 4].tolist(), want[row : row + 4].tolist()
    if run == own and place != home:
        text += f" ({_place(place)} lies where {_place(home)} belongs)"
    return f"{text}; blocks of 4 KiB wrong in this part: {bad}"


def _place(words: list[int]) -> str:
    file, block, sample = words
    return f"file {file}, block {block}, sample {sample}"
