"""How a batch of transfers is done with so many in flight: Linux AIO from one thread, or a thread for each.

An engine has three steps: ``load`` (untimed), ``run`` (the timed region: transfers and what it takes to know when each began and
ended, nothing else) and ``finish`` (untimed: latencies).  Both end with all of their transfers done whole, or `TransferError`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from clustergauge.clocks import read_ns
from storage_io.batch import READ, WRITE, Batch
from storage_io.lanes import Lanes
from storage_io.slots import Slot, Slots

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4), "riscv64": (0, 1, 2, 4)}
"""Numbers of io_setup, io_destroy, io_submit and io_getevents (Linux, ``unistd.h`` of each architecture)."""
AT_ONCE = 4
"""Transfers that one system call submits: the kernel holds them back until it has all, and a device that completes many at once
would have nothing to do meanwhile."""
_LOOK_EVERY = 64
"""After so many reaps errors are looked for: then no more is submitted."""


class TransferError(Exception):
    """One transfer failed: which, and the system's reason."""

    def __init__(self, index: int, cause: OSError) -> None:
        super().__init__(index, cause)
        self.index = index
        self.cause = cause


class Engine(Protocol):
    """What `helpers` and the probes know of an engine."""

    name: str

    def load(self, first: int, last: int) -> None:
        """Make ready the transfers ``first`` to ``last`` (not itself) of the batch."""

    def run(self) -> None:
        """Do them.  Raises `TransferError`."""

    def finish(self) -> None:
        """Write the latencies into the batch."""

    def close(self) -> None:
        """Release what the engine holds."""


def complete(descriptor: int, batch: Batch, index: int, done: int, view: memoryview | None = None) -> None:
    """The rest of a transfer of which ``done`` bytes are done already.  ``view``: instead of its own memory.

    Raises `TransferError`.
    """
    call: Callable[..., int] = os.preadv if batch.kinds[index] == READ else os.pwritev
    offset = int(batch.offsets[index])
    view = batch.view(index) if view is None else view
    try:
        while done < batch.block:
            step = call(descriptor, (view[done:],), offset + done)
            if step == 0:
                raise OSError(errno.EIO, f"the file {'ends' if call is os.preadv else 'takes no more'} here")
            done += step
    except OSError as error:
        raise TransferError(index, error) from error


class Threads:
    """``preadv``/``pwritev``; with a depth of one no thread but the caller's.

    ``slots``: for reads alone, a block of memory for each thread, which it reads into again and again, and not into the memory of
    the batch; what a thread read last is told by its index.
    """

    def __init__(self, descriptor: int, batch: Batch, depth: int, slots: Slots[int] | None = None) -> None:
        self.name = "preadv" if slots else "pwritev/preadv"
        self._descriptor = descriptor
        self._batch = batch
        self._slots = slots
        self._first = self._last = 0
        self._items: Sequence[tuple[Any, ...]] = ()
        self._took: list[int] = []
        again = [functools.partial(self._read, slot, (slot.bytes,)) for slot in slots.each] if slots else []
        self._lanes = Lanes(again or [self._transfer] * depth)

    def load(self, first: int, last: int) -> None:
        """See `Engine`."""
        batch, numbers = self._batch, range(first, last)
        offsets = batch.offsets[first:last].tolist()
        if self._slots:
            self._slots.poison()
            self._items = list(zip(numbers, offsets, strict=True))
        else:
            calls, kinds = {READ: os.preadv, WRITE: os.pwritev}, batch.kinds[first:last].tolist()
            of_each = zip(numbers, kinds, offsets, strict=True)
            self._items = [(n, calls[kind], (batch.view(n),), offset) for n, kind, offset in of_each]
        self._first, self._last = first, last
        self._took = [0] * batch.most

    def run(self) -> None:
        """See `Engine`."""
        self._lanes.run(self._items)

    def finish(self) -> None:
        """See `Engine`."""
        self._batch.latencies[self._first : self._last] = self._took[self._first : self._last]

    def close(self) -> None:
        """See `Engine`."""
        self._lanes.close()

    def _transfer(self, index: int, call: Callable[..., int], views: tuple[memoryview], offset: int) -> None:
        began = read_ns()
        try:
            done = call(self._descriptor, views, offset)
        except OSError as error:
            raise TransferError(index, error) from error
        if done != self._batch.block:
            complete(self._descriptor, self._batch, index, done)
        self._took[index] = read_ns() - began

    def _read(self, slot: Slot[int], views: tuple[memoryview], index: int, offset: int) -> None:
        began = read_ns()
        try:
            done = os.preadv(self._descriptor, views, offset)
        except OSError as error:
            raise TransferError(index, error) from error
        if done != self._batch.block:
            complete(self._descriptor, self._batch, index, done, slot.bytes)
        self._took[index] = read_ns() - began
        slot.last = index


class Aio:
    """Linux AIO (io_submit(2)): one thread keeps ``depth`` transfers in flight; worth something with direct I/O only.

    All control blocks are made beforehand, and events go one after the other into an array as long as the batch: the loop is two
    system calls and two readings of the clock for as many transfers as have ended meanwhile; who took how long follows from both
    logs afterwards.  Raises ``OSError`` where the system has no AIO or no more of it (``/proc/sys/fs/aio-max-nr``).
    """

    def __init__(self, descriptor: int, batch: Batch, depth: int) -> None:
        import numpy as np

        self.name = "Linux AIO"
        if platform.machine() not in _CALLS:
            raise OSError(errno.ENOSYS, f"the numbers of AIO's system calls on {platform.machine()} are not known")
        setup, self._destroy, self._submit, self._getevents = _CALLS[platform.machine()]
        long, context, address = ctypes.c_long, ctypes.c_ulong, ctypes.c_void_p
        self._syscall_submit = _syscall(long, context, long, address)
        self._syscall_getevents = _syscall(long, context, long, long, address, address)
        self._descriptor = descriptor
        self._batch = batch
        self._depth = depth
        made = context(0)
        if _syscall(long, ctypes.c_uint, address)(setup, depth, ctypes.addressof(made)) < 0:
            raise _failed()
        self._context = made.value
        control = [("data", "u8"), ("key", "u4"), ("flags", "u4"), ("opcode", "u2"), ("priority", "i2"), ("file", "u4")]
        control += [("buffer", "u8"), ("bytes", "u8"), ("offset", "i8"), ("reserved", "u8"), ("more", "u4"), ("eventfd", "u4")]
        self._blocks: Any = np.zeros(batch.most, np.dtype(control))
        self._pointers: NDArray[np.uint64] = self._blocks.ctypes.data + 64 * np.arange(batch.most, dtype=np.uint64)
        self._events: Any = np.zeros(batch.most, np.dtype([("data", "u8"), ("block", "u8"), ("result", "i8"), ("more", "i8")]))
        self._first = self._count = 0
        self._submitted: list[tuple[int, int]] = []
        self._reaped: list[tuple[int, int]] = []

    def load(self, first: int, last: int) -> None:
        """See `Engine`."""
        import numpy as np

        batch, blocks = self._batch, self._blocks[: last - first]
        index = np.arange(first, last, dtype=np.uint64)
        blocks["data"], blocks["opcode"], blocks["file"] = index - first, batch.kinds[first:last], self._descriptor
        blocks["buffer"], blocks["bytes"] = batch.address + index * batch.block, batch.block
        blocks["offset"] = batch.offsets[first:last]
        self._first, self._count = first, last - first

    def run(self) -> None:
        """See `Engine`."""
        submitted: list[tuple[int, int]] = []
        reaped: list[tuple[int, int]] = []
        submit, number, getevents, other, context = (
            self._syscall_submit,
            self._submit,
            self._syscall_getevents,
            self._getevents,
            self._context,
        )
        pointers, events, results = self._pointers.ctypes.data, self._events.ctypes.data, self._events["result"]
        count, depth, at_once = self._count, self._depth, AT_ONCE
        sent = got = looks = 0
        while got < count:
            while sent < count and (room := depth - sent + got) > 0:
                began = read_ns()
                done = submit(number, context, min(room, count - sent, at_once), pointers + 8 * sent)
                if done < 0:
                    self._stop(sent, got)
                submitted.append((done, began))
                sent += done
            done = getevents(other, context, 1, sent - got, events + 32 * got, None)
            reaped.append((done, read_ns()))
            if done < 0:
                if ctypes.get_errno() != errno.EINTR:
                    raise _failed()
                reaped.pop()
                continue
            got += done
            looks += 1
            if looks % _LOOK_EVERY == 0 and results[:got].min() < 0:
                break
        self._submitted, self._reaped = submitted, reaped
        self._reap(got, sent)
        self._complete(sent)

    def finish(self) -> None:
        """See `Engine`."""
        import numpy as np

        (sent, began), (got, ended) = (np.array(log, np.int64).T for log in (self._submitted, self._reaped))
        starts, ends = np.repeat(began, sent), np.repeat(ended, got)
        order = self._events["data"][: self._count].astype(np.int64)
        self._batch.latencies[self._first + order] = ends - starts[order]

    def close(self) -> None:
        """See `Engine`.  Waits for what is in flight (io_destroy(2))."""
        context, self._context = self._context, 0
        if context:
            _syscall(ctypes.c_long, ctypes.c_ulong)(self._destroy, context)

    def _stop(self, sent: int, got: int) -> None:
        """Submitting failed: what is in flight is waited for, since it points into our memory."""
        error = _failed()
        self._reap(got, sent)
        raise TransferError(self._first + sent, error)

    def _reap(self, got: int, sent: int) -> None:
        """Wait for all that is still in flight."""
        while got < sent:
            left, room = sent - got, self._events.ctypes.data + 32 * got
            done = self._syscall_getevents(self._getevents, self._context, left, left, room, None)
            if done < 0 and ctypes.get_errno() != errno.EINTR:
                raise _failed()
            got += max(done, 0)

    def _complete(self, sent: int) -> None:
        """Failures become errors, short transfers whole ones."""
        events = self._events[:sent]
        short = events[events["result"] != self._batch.block]
        for index, result in zip((self._first + short["data"]).tolist(), short["result"].tolist(), strict=True):
            if result < 0:
                raise TransferError(index, OSError(-result, os.strerror(-result)))
            complete(self._descriptor, self._batch, index, result)


def _syscall(*types: Any) -> Any:
    """syscall(2) for arguments of these types, its number first."""
    call = ctypes.CDLL(None, use_errno=True)["syscall"]  # an object of its own each time
    call.restype, call.argtypes = ctypes.c_long, types
    return call


def _failed() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
