"""Memory that lanes use again and again: so many bytes for each, as fio, IOR and others have it.

It stays in the processor's cache, which counts where a processor moves the data (of the same virtual disk a loop in C read 1.65
GB/s into one block, and 1.47 GB/s into memory as large as the file).  What a lane that reads has read last is still there to be
verified; the rest is read once more for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from storage_io.pattern import POISON, aligned

if TYPE_CHECKING:
    from storage_io.pattern import Words

K = TypeVar("K")


class Slot(Generic[K]):
    """Memory of one lane.

    ``last``: what was read into it last, in the lane's terms; ``None``: nothing since `Slots.poison`.  ``count``: how often
    something was since then, where the lane counts.  ``address``: where the memory begins.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.bytes = words.data.cast("B")
        self.address = int(words.ctypes.data)
        self.last: K | None = None
        self.count = 0


class Slots(Generic[K]):
    """Memory for ``depth`` lanes, on huge pages where the kernel gives them.  ``block``: bytes of each."""

    def __init__(self, depth: int, block: int) -> None:
        self._memory = aligned(depth * block)
        self.nbytes = self._memory.nbytes
        self.each: list[Slot[K]] = [Slot(words) for words in self._memory.reshape(depth, -1)]

    def poison(self) -> None:
        """Forget what was read."""
        self._memory[:] = POISON
        for slot in self.each:
            slot.last, slot.count = None, 0

    def held(self) -> list[tuple[Words, K]]:
        """What the lanes hold, and what it is."""
        return [(slot.words, slot.last) for slot in self.each if slot.last is not None]
