"""Engines on a real file: each block to its own buffer, as many in flight as asked, and a failure told with its place."""

import contextlib
import errno
import os

import numpy as np
import pytest

from storage_io import engines, helpers
from storage_io.batch import READ, WRITE, Batch
from storage_io.engines import Aio, Threads, TransferError
from storage_io.helpers import helpers_for, share
from storage_io.slots import Slots

SIZE = 16 << 20
BLOCK = 4096


def aio_works():
    """Whether this system lets a process have Linux AIO."""
    batch = Batch(1, BLOCK)
    try:
        Aio(0, batch, 1).close()
    except OSError:
        return False
    finally:
        batch.close()
    return True


needs_aio = pytest.mark.skipif(not aio_works(), reason="this system has no Linux AIO")


@contextlib.contextmanager
def a_batch(tmp_path, count, kind=READ, size=SIZE):
    """A file of known words, and transfers to its blocks in reverse order."""
    path = tmp_path / "plain"
    content = np.arange(size // 8, dtype=np.uint64)
    path.write_bytes(content.tobytes())
    descriptor = os.open(path, os.O_RDWR)
    batch = Batch(count, BLOCK)
    batch.offsets[:] = np.arange(count)[::-1] * BLOCK
    batch.kinds[:] = kind
    try:
        yield descriptor, batch, content
    finally:
        os.close(descriptor)
        batch.close()


def again(descriptor, batch, depth):
    """Threads that read into memory of their own."""
    return Threads(descriptor, batch, depth, Slots(depth, batch.block))


ENGINES = [Threads, pytest.param(Aio, marks=needs_aio)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("depth", [1, 5])
def test_an_engine_transfers_each_block_to_its_own_buffer(tmp_path, engine, depth):
    with a_batch(tmp_path, 100) as (descriptor, batch, content):
        one = engine(descriptor, batch, depth)
        one.load(10, 90)
        one.run()
        one.finish()
        one.close()
        rows = batch.content.reshape(100, -1)
        assert np.array_equal(rows[10:90], content[: 100 * 512].reshape(100, -1)[::-1][10:90])
        assert not rows[:10].any()
        assert not rows[90:].any()
        assert (batch.latencies[10:90] > 0).all()
        assert not batch.latencies[:10].any()


@needs_aio
@pytest.mark.parametrize("depth", [1, 5, 32])
def test_aio_has_as_many_in_flight_as_asked(tmp_path, depth):
    with a_batch(tmp_path, 100) as (descriptor, batch, _):
        one = Aio(descriptor, batch, depth)
        submit, reap, flying = one._syscall_submit, one._syscall_getevents, [0]
        one._syscall_submit = lambda *args: (done := submit(*args), flying.append(flying[-1] + done))[0]
        one._syscall_getevents = lambda *args: (done := reap(*args), flying.append(flying[-1] - done))[0]
        one.load(0, 100)
        one.run()
        one.close()
        assert (max(flying), flying[-1]) == (depth, 0)


@pytest.mark.parametrize("engine", [*ENGINES, again])
def test_a_short_read_at_the_end_of_the_file_is_an_error_with_its_place(tmp_path, engine):
    with a_batch(tmp_path, 200) as (descriptor, batch, _):
        os.truncate(tmp_path / "plain", 150 * BLOCK + 100)
        one = engine(descriptor, batch, 4)
        one.load(0, 200)
        with pytest.raises(TransferError) as caught:
            one.run()
        one.close()
        assert batch.offsets[caught.value.index] >= 150 * BLOCK
        assert str(caught.value.cause) == "[Errno 5] the file ends here"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failing_write_stops_the_rest(tmp_path, engine):
    with a_batch(tmp_path, 1000, WRITE) as (_, batch, _):
        read_only = os.open(tmp_path / "plain", os.O_RDONLY)
        one = engine(read_only, batch, 4)
        one.load(0, 1000)
        with pytest.raises(TransferError) as caught:
            one.run()
        one.close()
        os.close(read_only)
        assert caught.value.cause.errno == errno.EBADF


@needs_aio
def test_after_a_failed_transfer_aio_submits_few_more(tmp_path):
    with a_batch(tmp_path, 1000) as (_, batch, _):
        try:
            descriptor = os.open(tmp_path / "plain", os.O_RDONLY | os.O_DIRECT)
        except OSError:
            pytest.skip("the temporary folder has no direct I/O")
        batch.offsets[10] += 1  # where no direct read can begin
        with contextlib.suppress(OSError):
            os.preadv(descriptor, [batch.view(10)], int(batch.offsets[10]))
            pytest.skip("the file system of the temporary folder reads from anywhere")
        one = Aio(descriptor, batch, 1)
        one.load(0, 1000)
        with pytest.raises(TransferError) as caught:
            one.run()
        one.close()
        os.close(descriptor)
        assert (caught.value.index, caught.value.cause.errno) == (10, errno.EINVAL)
        assert sum(done for done, _ in one._submitted) == engines._LOOK_EVERY


def test_a_short_transfer_is_made_whole(tmp_path, monkeypatch):
    with a_batch(tmp_path, 10) as (descriptor, batch, content):
        real = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:1000]], offset))
        one = Threads(descriptor, batch, 1)
        one.load(0, 10)
        one.run()
        assert np.array_equal(batch.content.reshape(10, -1)[::-1].reshape(-1), content[:5120])
        one = again(descriptor, batch, 1)
        one.load(0, 10)
        one.run()
        one.finish()
        ((words, index),) = one._slots.held()
        assert index == 9
        assert np.array_equal(words, content[:512])
        assert (batch.latencies > 0).all()


def test_without_aio_helpers_use_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_CALLS", {})
    with a_batch(tmp_path, 10) as (descriptor, batch, _):
        with pytest.raises(OSError, match="not known"):
            Aio(descriptor, batch, 4)
        chosen = helpers._engine(descriptor, batch, 4, direct=True)
        assert isinstance(chosen, Threads)
        chosen.close()


def test_helpers_share_exactly_the_depth():
    assert [helpers_for(depth, BLOCK, 64) for depth in (2, 8, 32, 64, 256)] == [1, 1, 2, 4, 16]
    assert [helpers_for(depth, 64 << 10, 64) for depth in (2, 8, 32, 64, 256)] == [1, 1, 1, 1, 4]
    assert helpers_for(256, BLOCK, 2) == 2
    for depth in (2, 7, 32, 257):
        for count in range(1, 8):
            parts = share(depth, count)
            assert sum(parts) == depth
            assert max(parts) - min(parts) <= 1
