"""Many transfers of one block each, in memory that helper processes can share: their places, contents and latencies."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any

from storage_io.pattern import aligned

if TYPE_CHECKING:
    from storage_io.pattern import Words

READ, WRITE = 0, 1
"""Kinds of transfers; as Linux AIO numbers them (``IOCB_CMD_PREAD``, ``IOCB_CMD_PWRITE``)."""
_FIELDS = 3


class Batch:
    """Room for ``most`` transfers of ``block`` bytes each.

    ``offsets``: bytes into the file.  ``kinds``: `READ` or `WRITE`.  ``latencies``: nanoseconds from submitting to reaping, set
    by the engine.  ``content``: the buffers, one after the other, as 64-bit words; each transfer has memory of its own, so
    that all of a run can be verified after it.

    ``room``: so many of them have memory, the first ones, where not all do.

    ``shared``: the memory can be given to other processes, by its ``descriptor``, for a `Batch` of the same size there.  Most
    kernels keep such memory on small pages; other memory lies on huge ones, which large blocks need (`aligned`).
    """

    def __init__(self, most: int, block: int, descriptor: int = -1, *, shared: bool = True, room: int | None = None) -> None:
        import numpy as np

        self.most = most
        self.block = block
        self.descriptor = descriptor
        self.room = most if room is None else room
        if not shared:
            fields: Any = np.zeros((_FIELDS, most), np.int64)
            self.content: Words = aligned(self.room * block)
        else:
            head = -(-_FIELDS * 8 * most // mmap.PAGESIZE) * mmap.PAGESIZE  # buffers begin on a page, as direct I/O needs it
            size = head + self.room * block
            if descriptor < 0:
                self.descriptor = os.memfd_create("clustergauge")
                os.truncate(self.descriptor, size)
            memory = mmap.mmap(self.descriptor, size)
            fields = np.frombuffer(memory, np.int64, _FIELDS * most).reshape(_FIELDS, most)
            self.content = np.frombuffer(memory, np.uint64, self.room * block // 8, head)
        self.offsets, self.kinds, self.latencies = fields
        self.address = int(self.content.ctypes.data)

    def view(self, index: int) -> memoryview:
        """The buffer of one transfer."""
        return self.content.data.cast("B")[index * self.block : (index + 1) * self.block]

    def close(self) -> None:
        """Let go of the descriptor; the memory goes with the last array."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
