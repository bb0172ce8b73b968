"""A data set of stamped samples, in files of one or of many, as a ``DataLoader`` reads it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clustergauge.units import about
from storage_io import cold
from storage_io.errors import StorageError
from storage_io.layout import make_all
from storage_io.pattern import STAMP_EVERY, Pattern, aligned
from storage_io.workspace import Workspace

SAMPLE_BYTES = 112 << 10
"""The mean record of MLPerf Storage's ResNet-50 has 114 660 bytes."""
SHARD_SAMPLES = 512
SYNC_EVERY = 64 << 20
OPEN_MOST = 256
"""Files of several samples: a process may mostly have 1024 open, and a batch on its way is one."""


class DataSet:
    """Samples in files ``data-1`` …, so many in each; what a ``DataLoader`` asks for samples by number.

    Each process opens the files that it reads, and keeps those of several samples open, `OPEN_MOST` at once.
    """

    def __init__(self, workspace: Workspace, in_file: int, count: int) -> None:
        self._workspace = workspace
        self._in_file = in_file
        self._count = count
        self._pattern = Pattern()
        self._open: dict[int, int] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def files(self) -> range:
        """Numbers of the files."""
        return range(1, -(-self._count // self._in_file) + 1)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._workspace.path

    def path(self, file: int) -> Path:
        """Its path."""
        return self._workspace.file(file)

    def write(self, most_s: float) -> None:
        """Write all samples, synced every 64 MiB at the latest.  Raises `Skip` where it takes more than ``most_s`` seconds."""
        words = f"writing {about(self._count * SAMPLE_BYTES)} to begin with"
        every = max(1, SYNC_EVERY // (self._in_file * SAMPLE_BYTES))
        remedy = "; take a smaller --set size=…"
        make_all(len(self.files), most_s, self._write, words, lambda: cold.sync_all(self.folder), every, remedy)

    def verify(self, samples: Sequence[int], batch: Any) -> None:
        """Raise `Wrong`, naming file and byte, unless the rows of ``batch`` are these samples."""
        import numpy as np

        for sample, row in zip(samples, batch.numpy(), strict=True):
            file, first = self._place(sample)
            rows = np.arange(first // STAMP_EVERY, (first + SAMPLE_BYTES) // STAMP_EVERY)
            self._pattern.verify_rows(row.view(np.uint64), rows, self.path(file), file, np.zeros_like(rows))

    def drop(self, samples: Iterable[int]) -> int:
        """Take the files of these samples out of the page cache; the most bytes that stayed of one."""
        return max(cold.drop(self.path(file)) for file in sorted({self._place(sample)[0] for sample in samples}))

    def _place(self, sample: int) -> tuple[int, int]:
        """Number of the file of a sample, and its first byte there."""
        return sample // self._in_file + 1, sample % self._in_file * SAMPLE_BYTES

    def _samples_of(self, file: int) -> int:
        return min(self._in_file, self._count - (file - 1) * self._in_file)

    def _write(self, file: int) -> None:
        import numpy as np

        rows = np.arange(self._samples_of(file) * SAMPLE_BYTES // STAMP_EVERY)
        content = aligned(len(rows) * STAMP_EVERY)
        self._pattern.fill_rows(content, rows, file, np.zeros_like(rows))
        try:
            with self.path(file).open("xb", buffering=0) as out:
                left = content.data.cast("B")
                while left:
                    left = left[out.write(left) :]
        except OSError as error:
            raise StorageError(f"cannot write {self.path(file)}", error) from error

    def __getitem__(self, sample: int) -> Any:
        """A sample as a tensor of bytes.  Raises `StorageError`."""
        import torch

        file, at = self._place(sample)
        content = bytearray(SAMPLE_BYTES)
        try:
            descriptor = self._open.get(file, -1)
            if descriptor < 0:
                descriptor = os.open(self.path(file), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                done = os.preadv(descriptor, (content,), at)
            finally:
                if self._in_file == 1:
                    os.close(descriptor)
                else:
                    self._keep(file, descriptor)
            if done < SAMPLE_BYTES:
                raise OSError(5, f"the file ends at byte {at + done}")
        except OSError as error:
            raise StorageError(f"cannot read {self.path(file)}", error) from error
        return torch.frombuffer(content, dtype=torch.uint8)

    def _keep(self, file: int, descriptor: int) -> None:
        """Keep it open, and close the one that was opened first where there are too many."""
        self._open[file] = descriptor
        if len(self._open) > OPEN_MOST:
            os.close(self._open.pop(next(iter(self._open))))

    def close(self) -> None:
        """Close what this process has open."""
        while self._open:
            os.close(self._open.popitem()[1])
