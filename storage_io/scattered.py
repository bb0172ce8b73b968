"""Transfers to blocks of a file in random order, so many in flight: chosen, prepared, done by an engine, and verified."""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING

from clustergauge.budget import seconds
from clustergauge.probe import Context, Wrong
from storage_io import cold, memory
from storage_io.batch import READ, WRITE, Batch
from storage_io.datafile import DataFile
from storage_io.engines import Threads
from storage_io.evidence import DeviceBytes
from storage_io.helpers import LARGE, Alone, Helpers, helpers_for
from storage_io.latencies import Latencies
from storage_io.pattern import POISON, STAMP_EVERY, Pattern
from storage_io.slots import Slots

if TYPE_CHECKING:
    from storage_io.pattern import Numbers, Words

MIX = 10
"""Of so many transfers of a mixed case `MIX_READS` are reads."""
MIX_READS = 7
BUFFER_BYTES = 128 << 20
"""Memory for the blocks of one sample, at most."""
AGAIN_BYTES = 1 << 30
"""Blocks of one sample, at most, where they go into memory again and again."""
SAMPLES = 8
"""About so many samples are to be had from the budget."""
LEAST = 8
"""Transfers of a sample, however slow the disk."""
SPOT_CHECKS = 64
"""Blocks written in a sample that are read back after it."""


class Scattered:
    """A file, transfers to random blocks of it, the engine that does them, and the one that reads back (mostly the same).

    ``steps``: steps of the `workload` in one run; known after `calibrate`.  ``pids``: the processes beside this one
    whose bytes the kernel counts; ``beside``: bytes that others of them wrote during a run.
    """

    def __init__(self, ctx: Context, file: DataFile, pattern: Pattern, op: str, block: int, depth: int) -> None:
        import numpy as np

        self.writes = op != "read"
        self._unit = MIX if op == "mixed" else 1
        self._reads = {"read": 1.0, "write": 0.0, "mixed": MIX_READS / MIX}[op]
        self._ctx = ctx
        self._file = file
        self._pattern = pattern
        self._depth = depth
        self._blocks = file.size // block
        helpers = helpers_for(depth, block, len(os.sched_getaffinity(0)))
        again = op == "read" and block >= LARGE and helpers == 1
        most, room = (min(self._blocks, size // block) for size in (AGAIN_BYTES if again else BUFFER_BYTES, BUFFER_BYTES))
        self._batch = Batch(most, block, shared=helpers > 1, room=room)
        self._count = 0
        with contextlib.ExitStack() as stack:
            stack.callback(self._batch.close)
            self._back = Helpers(file, self._batch, depth, helpers) if helpers > 1 else Alone(file, self._batch, depth)
            stack.callback(self._back.close)
            self._slots = Slots[int](depth, block) if again else None
            self._engine = self._back
            if self._slots:
                self._engine = Alone(file, self._batch, depth, Threads(file.descriptor, self._batch, depth, self._slots))
                stack.callback(self._engine.close)
            self.close = stack.pop_all().close
            """End the helpers."""
        self.pids = list(self._engine.pids)
        self.beside = 0
        self._device = DeviceBytes(ctx.device_bytes, self.pids)
        self._latencies = Latencies(ctx)
        self._choose = np.random.default_rng(ctx.seed)
        self._held: Numbers = np.zeros(self._blocks, np.int64)
        """The sample whose data each block holds."""
        self._sample = 0
        self._asked = False
        total = memory.meminfo("MemTotal")
        ctx.set("engine", self._engine.name)
        for name, value in file.settings().items():
            ctx.set(name, value)
        if total:
            ctx.set("file_to_memory", round(file.size / total, 4))

    @property
    def steps(self) -> int:
        """See the class."""
        return self._count // self._unit

    def calibrate(self) -> None:
        """Find how many transfers take a sample's share of the budget; at least the depth and `LEAST`.

        The first look is late now and then, and so is not alone.
        """
        share = self._ctx.budget_s / SAMPLES
        least = -(-max(self._depth, LEAST) // self._unit) * self._unit
        most = self._batch.most // self._unit * self._unit
        self._count = min(least, most)
        first = self._trial()
        for _ in range(4):
            took, first = min(first, self._trial()), math.inf
            fitting = int(self._count * share / took) // self._unit * self._unit
            wanted = max(min(least, most), min(most, fitting))
            near = took >= share / 2 or wanted <= self._count
            self._count = wanted
            if near:
                break
        self._ctx.set("transfers_per_sample", self._count)

    def _trial(self) -> float:
        """Seconds of a sample that does not count."""
        self._load()
        took = seconds(self.run)
        self._verify_all()
        return took

    # -- the timed region

    def run(self) -> None:
        """All transfers of the sample, and the sync that takes writes to the device."""
        self._engine.run()
        if self.writes:
            self._file.sync()

    # -- outside of it

    def reset(self) -> None:
        """Settle and verify the last sample, and make the next one ready."""
        self._settle()
        if self._asked:
            self._verify_some()
        self._load()
        self._drop()
        self._asked = True
        if self._file.counted:
            self._device.mark()

    def note(self) -> None:
        """The latencies of the sample that has ended."""
        self._settle()
        self._engine.finish()
        self._latencies.add(self._batch.latencies[: self._count])

    def check(self) -> None:
        """The whole of the last sample, bit for bit; writes are read back from the device."""
        self._settle()
        if self._asked:
            self._verify_all()
        self._asked = False

    def _load(self) -> None:
        """Choose blocks, fill what is to be written, poison what is to be read."""
        batch, count = self._batch, self._count
        chosen = self._choose.permutation(self._blocks)[:count]
        batch.offsets[:count] = chosen * batch.block
        reads = round(count * self._reads)
        kinds = batch.kinds[:count]
        kinds[:], kinds[:reads] = WRITE, READ
        self._choose.shuffle(kinds)
        if not self._slots:  # which are read into instead
            self._prepare(chosen, kinds)
        self._engine.load(count)

    def _prepare(self, chosen: Numbers, kinds: Numbers) -> None:
        """What memory holds before a run."""
        content = self._content(len(chosen))
        content[kinds == READ] = POISON
        if self.writes:
            self._sample += 1
            written = chosen[kinds == WRITE]
            self._held[written] = self._sample
            fresh = content[kinds == WRITE].reshape(-1)
            self._fill(fresh, written)
            content[kinds == WRITE] = fresh.reshape(-1, self._batch.block // 8)

    def _verify_some(self) -> None:
        """All reads of the sample; of its writes some, read back."""
        self._verify_reads()
        written = self._written()
        if len(written):
            self._read_back(self._choose.choice(written, min(SPOT_CHECKS, len(written)), replace=False))

    def _verify_all(self) -> None:
        """All reads, and all writes read back from the device."""
        self._verify_reads()
        written = self._written()
        if len(written):
            self._read_back(written)

    def _verify_reads(self) -> None:
        import numpy as np

        if self._slots:
            self._verify_again(self._slots.held())
            return
        chosen = np.flatnonzero(self._batch.kinds[: self._count] == READ)
        if len(chosen):
            whole = len(chosen) == self._count
            content = self._content(self._count) if whole else self._content(self._count)[chosen]
            self._verify(content.reshape(-1), self._batch.offsets[chosen] // self._batch.block)

    def _verify_again(self, held: list[tuple[Words, int]]) -> None:
        """What memory holds, and then all blocks of the sample, each read into memory of its own."""
        blocks = self._batch.offsets[: self._count] // self._batch.block
        if not held:
            raise Wrong(f"nothing of {self._file.path} was read")
        for words, index in held:
            self._verify(words, blocks[index : index + 1])
        self._read_back(blocks)

    def _written(self) -> Numbers:
        """The blocks that the last sample wrote."""
        count = self._count
        return self._batch.offsets[:count][self._batch.kinds[:count] == WRITE] // self._batch.block

    def _read_back(self, blocks: Numbers) -> None:
        """Read blocks, as many at a time, into poisoned buffers, and verify them."""
        batch = self._batch
        if not self._file.direct:
            self._file.drop()
        for start in range(0, len(blocks), batch.room):
            some = blocks[start : start + batch.room]
            count = len(some)
            batch.offsets[:count] = some * batch.block
            batch.kinds[:count] = READ
            self._content(count)[:] = POISON
            self._back.load(count)
            self._back.run()
            self._verify(self._content(count).reshape(-1), some)

    def _fill(self, out: Words, blocks: Numbers) -> None:
        self._pattern.fill_rows(out, self._rows(blocks), 0, self._samples(blocks))

    def _verify(self, got: Words, blocks: Numbers) -> None:
        self._pattern.verify_rows(got, self._rows(blocks), self._file.path, 0, self._samples(blocks))

    def _rows(self, blocks: Numbers) -> Numbers:
        """The 4 KiB blocks that blocks are made of."""
        import numpy as np

        each = self._batch.block // STAMP_EVERY
        return (blocks[:, None] * each + np.arange(each)).reshape(-1)

    def _samples(self, blocks: Numbers) -> Numbers:
        import numpy as np

        return np.repeat(self._held[blocks], self._batch.block // STAMP_EVERY)

    def _content(self, count: int) -> Words:
        """The buffers of the first transfers, one a line."""
        words = self._batch.block // 8
        return self._batch.content[: count * words].reshape(count, words)

    def _drop(self) -> None:
        """Nothing of the file is cached when a buffered run begins; a record says what the kernel would not drop."""
        if not self._file.direct:
            cold.say_left(self._ctx, self._file.drop())

    def _settle(self) -> None:
        block = self._batch.block
        reads = round(self._count * self._reads)
        self._device.settle(reads * block, (self._count - reads) * block + self.beside)
