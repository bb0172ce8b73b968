"""Ways to keep tensors in a file.  Each saves those of a `Shard` and restores into them: into memory that is there, as a training
program fills the parameters that it has made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from clustergauge.probe import Wrong
from storage_io.datafile import DataFile
from storage_io.errors import StorageError
from storage_io.lanes import Lanes
from storage_io.layout import pieces
from storage_io.models import Part
from storage_io.pattern import POISON, STAMP_EVERY, Pattern, aligned

if TYPE_CHECKING:
    from storage_io.pattern import Words

RAW_DEPTH, RAW_BYTES = 8, 4 << 20
"""Transfers of the raw format in flight, and bytes of each: 1.13 (save) and 1.04 (restore) times as fast as four of 1 MiB (fio's
1.06 and 1.04)."""

Tensors = Mapping[str, Any]
"""torch tensors by name."""


class Shard:
    """Tensors that lie one after the other in one buffer.  ``bytes``: of all of them; ``content``: the buffer, whole 4 KiB."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.bytes = sum(part.bytes for part in parts)
        self.content: Words = aligned(-(-self.bytes // STAMP_EVERY) * STAMP_EVERY)

    def views(self) -> dict[str, bytes | memoryview]:
        """The bytes of each tensor."""
        whole, at, found = self.content.data.cast("B"), 0, dict[str, bytes | memoryview]()
        for part in self.parts:
            found[part.name] = whole[at : at + part.bytes]
            at += part.bytes
        return found

    def tensors(self) -> Tensors:
        """torch tensors on the same memory, each with a storage of its own (a file holds whole storages)."""
        import torch

        kinds: dict[str, Any] = {"bf16": torch.bfloat16, "fp32": torch.float32}
        views = self.views()
        return {part.name: torch.frombuffer(views[part.name], dtype=kinds[part.dtype]).view(part.shape) for part in self.parts}

    def fill(self, pattern: Pattern) -> None:
        """The data of sample 0."""
        pattern.fill(self.content, 0, 0)

    def poison(self) -> None:
        """Nothing of a restore is there before it."""
        self.content[:] = POISON

    def verify(self, name: str, got: bytes | memoryview, path: Path) -> None:
        """Raise `Wrong`, naming tensor and byte, unless ``got`` is bit for bit the tensor of this name."""
        import numpy as np

        want = self.views()[name]
        if len(got) != len(want):
            raise Wrong(f"{path}: tensor {name} has {len(got)} bytes, expected {len(want)}")
        found, due = (np.frombuffer(view, np.uint64 if len(want) % 8 == 0 else np.uint8) for view in (got, want))
        if not np.array_equal(found, due):
            found, due = np.frombuffer(got, np.uint8), np.frombuffer(want, np.uint8)
            differ: Any = found != due
            first = int(differ.argmax())
            words = f"expected {due[first]:#04x}, got {found[first]:#04x}"
            raise Wrong(f"{path}: tensor {name} differs at byte {first} of {len(due)}: {words}; {int(differ.sum())} bytes do")


class Format(Protocol):
    """What `checkpoint` knows of a format.  ``engine``: how, in words; ``direct``: past the page cache."""

    engine: str
    direct: bool

    def save(self, path: Path) -> None:
        """Write the tensors to a new file; what of it is on the device is not said.  Raises `StorageError`."""

    def restore(self, path: Path) -> None:
        """Fill the tensors from the file.  Raises `StorageError`."""

    def read(self, path: Path, names: Sequence[str]) -> Mapping[str, memoryview]:
        """The bytes of some tensors of the file, in memory of their own.  Raises `StorageError`."""

    def close(self) -> None:
        """Let go of threads."""


class Torch:
    """``torch.save``, and ``torch.load`` with the file mapped."""

    def __init__(self, shard: Shard) -> None:
        import torch

        self.direct = False
        self.engine = f"torch {torch.__version__}: save; load (weights_only, mmap) and copy"
        self._tensors = shard.tensors()

    def save(self, path: Path) -> None:
        """See `Format`."""
        import torch

        with _in_words(f"cannot save {path}", lambda: _refused(path)):
            torch.save(dict(self._tensors), path)

    def restore(self, path: Path) -> None:
        """See `Format`."""
        with _in_words(f"cannot restore {path}"):
            _copy(self._load(path), self._tensors)

    def read(self, path: Path, names: Sequence[str]) -> Mapping[str, memoryview]:
        """See `Format`."""
        with _in_words(f"cannot restore {path}"):
            loaded = self._load(path)
            return {name: _bytes(loaded[name]) for name in names}

    def close(self) -> None:
        """See `Format`."""

    def _load(self, path: Path) -> Tensors:
        import torch

        return torch.load(path, weights_only=True, mmap=True)


class Safetensors:
    """``safetensors.torch``, which maps the file."""

    def __init__(self, shard: Shard) -> None:
        import safetensors

        self.direct = False
        self.engine = f"safetensors {safetensors.__version__}: save_file; load_file and copy"
        self._tensors = shard.tensors()

    def save(self, path: Path) -> None:
        """See `Format`."""
        from safetensors.torch import save_file

        with _in_words(f"cannot save {path}"):
            save_file(dict(self._tensors), path)

    def restore(self, path: Path) -> None:
        """See `Format`."""
        from safetensors.torch import load_file

        with _in_words(f"cannot restore {path}"):
            _copy(load_file(path), self._tensors)

    def read(self, path: Path, names: Sequence[str]) -> Mapping[str, memoryview]:
        """See `Format`."""
        from safetensors import safe_open

        with _in_words(f"cannot restore {path}"), safe_open(path, framework="pt") as file:
            return {name: _bytes(file.get_tensor(name)) for name in names}

    def close(self) -> None:
        """See `Format`."""


class Raw:
    """No format: the tensors one after the other, by `RAW_DEPTH` threads, past the page cache unless the file system refuses it
    (``refused``: why); what the device gives."""

    def __init__(self, shard: Shard, refused: str) -> None:
        self.direct = not refused
        self.engine = f"pwritev/preadv, {RAW_BYTES >> 20} MiB, {RAW_DEPTH} threads"
        self._refused = refused
        self._shard = shard
        self._pieces = pieces(shard.content, RAW_BYTES)
        self._lanes = Lanes([lambda call, offset, view: call(offset, view)] * RAW_DEPTH)

    def save(self, path: Path) -> None:
        """See `Format`."""
        with contextlib.closing(self._open(path, new=True)) as file:
            file.allocate()
            self._lanes.run([(file.write_at, offset, view) for offset, view in self._pieces])

    def restore(self, path: Path) -> None:
        """See `Format`."""
        with contextlib.closing(self._open(path, new=False)) as file:
            self._lanes.run([(file.read_at, offset, view) for offset, view in self._pieces])

    def read(self, path: Path, names: Sequence[str]) -> Mapping[str, memoryview]:
        """See `Format`."""
        ends: dict[str, tuple[int, int]] = {}
        at = 0
        for part in self._shard.parts:
            ends[part.name] = (at, at := at + part.bytes)
        found: dict[str, memoryview] = {}
        with contextlib.closing(self._open(path, new=False)) as file:
            for name in names:
                first, last = ends[name]
                start = first // STAMP_EVERY * STAMP_EVERY
                words = aligned(-(-last // STAMP_EVERY) * STAMP_EVERY - start)
                for offset, view in pieces(words):
                    file.read_at(start + offset, view)
                found[name] = words.data.cast("B")[first - start : last - start]
        return found

    def close(self) -> None:
        """See `Format`."""
        self._lanes.close()

    def _open(self, path: Path, *, new: bool) -> DataFile:
        file = DataFile(path, self._shard.content.nbytes, new=new)
        if self._refused and file.direct:
            file.go_buffered(self._refused)
        return file


def _copy(loaded: Tensors, into: Tensors) -> None:
    """As ``load_state_dict`` does: into the tensors that are there."""
    for name, tensor in into.items():
        tensor.copy_(loaded[name])


def _bytes(tensor: Any) -> memoryview:
    import torch

    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _refused(path: Path) -> OSError | None:
    """Why a file takes no more, if it takes no more: of a full disk torch says ``unexpected pos 1152 vs 1046``."""
    try:
        with path.open("ab", buffering=0) as file:
            file.write(bytes(STAMP_EVERY))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def _in_words(failed: str, why: Callable[[], OSError | None] = lambda: None) -> Any:
    """Whatever the library raises as a `StorageError`.  ``why``: asks the system, where the library does not say."""
    try:
        yield
    except OSError as error:
        raise StorageError(failed, error) from error
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        reason = why()
        cause = OSError(reason.errno, f"{reason.strerror} ({text})") if reason else OSError(text)
        raise StorageError(failed, cause) from error
