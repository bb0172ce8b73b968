"""An S3 object store: put, get, ranges, lists and deletes, of small objects by the thousand and of large ones in parts.

Small objects (up to 8 MiB): ``concurrency`` requests are in flight, a sample is as many as take its share of the budget, and
latency is that of each request.  *put* writes objects under new names, *get* reads them whole, *range* reads parts of ``size``
out of one object, *list* lists the whole folder by each request (times and IO/s are of single names), *delete* deletes by one
request each.  A large object goes by one request alone (``concurrency=1``), or in parts of 8 MiB, so many in flight: the rate is
bytes a second.  A request that the store refuses for the moment is tried again, inside the time, and the tries are counted.

Whatever is read is verified whole; what is written is listed after every sample and read back in part, after the last in full.
Objects lie in a folder of our own (`object_space`), and none is left.
"""

from __future__ import annotations

import contextlib

from clustergauge.budget import seconds
from clustergauge.clocks import read_ns
from clustergauge.closing import closing
from clustergauge.model import Workload
from clustergauge.probe import Context, Moves, Needs, Skip, Work, Wrong, probe
from clustergauge.units import format_size
from storage_io import memory, object_large, object_ops
from storage_io.errors import StorageError
from storage_io.latencies import Latencies
from storage_io.object_client import PART_BYTES, Client
from storage_io.object_login import Login
from storage_io.object_ops import Op
from storage_io.object_space import ObjectSpace
from storage_io.pattern import unstamped

OPS = ("put", "get", "range", "list", "delete")
TOTAL_BYTES = 64 << 20
"""Of all small objects of a case, at most, and of the object that ranges are read out of."""
MOST = {"put": 4096, "get": 2048, "range": 16384, "delete": 1024}
"""Requests of a sample; what is deleted must be written first."""
NAMES = 1200
"""Objects that are listed: more than one answer holds (1000)."""
SAMPLES = 15
LEAST = 8
LOOK_S = 5.0
"""The least time between two looks, between samples, at who else is at work there."""
SINGLE_MOST = 5 << 30
"""Bytes that one request may put."""


def needs(op: str, concurrency: int, size: int) -> Needs:
    """An object store and the packages that talk to it."""
    words = refused(op, concurrency, size)
    count = 1 if size > PART_BYTES else NAMES if op == "list" else max(1, min(MOST[op], TOTAL_BYTES // max(1, size)))
    if op == "put":
        moves = Moves(sample=size, after=count * size, names=count)
    else:
        moves = Moves(before=count * size, sample=size if op == "get" else 0, names=1 if op == "range" else count)
    return Needs(target=True, objects=True, modules=("obstore", "botocore"), moves=moves, refused=words)


def refused(op: str, concurrency: int, size: int, total: int = TOTAL_BYTES, names: int = NAMES) -> str:
    """Why such a case has no meaning, in words; empty where it has one."""
    if words := unstamped(size):
        return words
    if size > PART_BYTES and op not in ("put", "get"):
        return f"op={op} is about objects of at most {format_size(PART_BYTES)}"
    if size > PART_BYTES and concurrency > -(-size // PART_BYTES):
        words = f"{concurrency} parts of {format_size(PART_BYTES)} at a time are more than {format_size(size)}"
        return f"{words}; take a smaller --set concurrency=…"
    least = max(LEAST, concurrency)
    if size <= PART_BYTES and op != "list" and least * size > total:
        what = "ranges" if op == "range" else "objects"
        return f"{least} {what} of {format_size(size)} are more than {format_size(total)}; take a smaller --set size=…"
    if op == "list" and size * names > total:
        return f"{names} objects to list, of {format_size(size)} each, are more than {format_size(total)}: take size=4KiB"
    if op == "put" and concurrency == 1 and size > SINGLE_MOST:
        return f"one request can put {format_size(SINGLE_MOST)} at most; take --set concurrency=8: in parts"
    return ""


@probe(
    "object_store",
    needs=needs,
    op=OPS,
    concurrency=(1, 8, 32, 64),
    size=(4 << 10, 16 << 10, 64 << 10, 1 << 20, 64 << 20, 256 << 20, 1 << 30),
)
def object_store(ctx: Context, op: str, concurrency: int, size: int) -> Work:
    """Requests to an S3 object store, ``concurrency`` in flight.  size: bytes of each object, or range."""
    return prepare(ctx, op, concurrency, size)


def prepare(ctx: Context, op: str, concurrency: int, size: int, total: int = TOTAL_BYTES, names: int = NAMES) -> Work:
    """The work of the probe.  ``total``: bytes of all small objects; ``names``: how many objects are listed.

    Raises `Skip` where the size has no meaning, memory or time are short, or the bucket keeps what is deleted; `StorageError`
    where the store can't be used.
    """
    if ctx.objects is None:
        raise Skip("the target is no object store")
    url, large = ctx.objects, size > PART_BYTES
    _require(op, concurrency, size, total, names)
    with contextlib.ExitStack() as stack:
        login = Login()
        client = Client(login, url, max(concurrency, object_ops.HELPERS), size if large else total)
        space = stack.enter_context(closing(ObjectSpace(url, login, client)))
        most = names if op == "list" else max(1, min(MOST[op], total // size))
        requests = make_op(ctx, space, client, op, concurrency, size, most)
        stack.callback(requests.close)
        case = _Case(ctx, client, space, requests, concurrency, large)
        case.look_around()
        for name, value in (login.settings() | space.settings()).items():
            ctx.set(name, value)
        ctx.set("engine", f"obstore {_version()}, {concurrency} {'parts at once' if large else 'threads'}")
        requests.populate()
        case.calibrate()
        stack.callback(case.look_around)
        close = stack.pop_all().close
    read, written = (size, 0) if op in ("get", "range") else (0, size) if op == "put" else (0, 0)
    return Work(
        run=case.run,
        reset=case.reset,
        note=case.note,
        check=case.check,
        close=close,
        workload=Workload(
            ios=0 if large else 1, bytes_read=read, bytes_written=written, bound="storage" if read or written else "latency"
        ),
        max_iterations=1,
        steps=case.steps,
    )


def _require(op: str, concurrency: int, size: int, total: int, names: int) -> None:
    """Raises `Skip` where such a case can't be."""
    if words := refused(op, concurrency, size, total, names):
        raise Skip(words)
    buffers = 2 * (size if size > PART_BYTES else total)
    memory.require(buffers, f"buffers of {format_size(buffers)} need")


def make_op(ctx: Context, space: ObjectSpace, client: Client, op: str, concurrency: int, size: int, most: int) -> Op:
    """The requests of a case; ``most``: how many a sample holds at most, or how many objects are listed."""
    if size > PART_BYTES:
        return {"put": object_large.PutLarge, "get": object_large.GetLarge}[op](ctx, space, client, concurrency, size)
    kind = {
        "put": object_ops.Put,
        "get": object_ops.Get,
        "range": object_ops.Range,
        "list": object_ops.List,
        "delete": object_ops.Delete,
    }[op]
    return kind(ctx, space, client, concurrency, size, most)


class _Case:
    """An operation as the timing loop wants it.  ``steps``: steps of the workload in one run; known after `calibrate`."""

    def __init__(self, ctx: Context, client: Client, space: ObjectSpace, op: Op, concurrency: int, large: bool) -> None:
        self.run = op.run
        self._ctx = ctx
        self._client = client
        self._space = space
        self._others: set[str] = set()
        self._looked = 0
        self._op = op
        self._large = large
        self._count = op.most if large else min(op.most, max(LEAST, concurrency))
        self._asked = False
        self._latencies = None if large else Latencies(ctx)
        self._tried_before = 0
        self._retries = 0

    @property
    def steps(self) -> int:
        """See the class."""
        return 1 if self._large else self._count * self._op.names

    def calibrate(self) -> None:
        """Find how many requests take a sample's share of the budget; of a large object there is nothing to find."""
        if self._large:
            return
        share = self._ctx.budget_s / SAMPLES
        for _ in range(4):
            self.reset()
            took = seconds(self.run)
            self.check()
            wanted = max(self._count, min(self._op.most, int(self._count * share / took)))
            near, self._count = wanted < 2 * self._count, wanted
            if near:
                break
        self._ctx.set("requests_per_sample", self._count)

    def look_around(self) -> None:
        """Record which other runs are at work under the prefix.  A store that does not tell is no fault of the case."""
        with contextlib.suppress(StorageError, Wrong):
            self._others |= self._space.others()
        self._looked = read_ns()
        if self._others:
            count = len(self._others)
            self._ctx.set("other_runs", f"{count}, by {'its mark' if count == 1 else 'their marks'}")

    def reset(self) -> None:
        """Verify the last sample, look around where that was some time ago, and make the next sample ready."""
        if self._asked:
            self._op.verify(whole=False)
        if read_ns() - self._looked >= LOOK_S * 1e9:
            self.look_around()
        self._op.load(self._count)
        self._asked = True
        self._tried_before = self._client.retries

    def note(self) -> None:
        """What the sample that has ended has to say: latencies, and tries that the store had refused."""
        self._retries += self._client.retries - self._tried_before
        self._ctx.set("retries", self._retries)
        if self._latencies:
            self._latencies.add(self._op.latencies[: self._count])

    def check(self) -> None:
        """All of the last sample."""
        if self._asked:
            self._op.verify(whole=True)
        self._asked = False


def _version() -> str:
    import obstore

    return str(obstore.__version__)
