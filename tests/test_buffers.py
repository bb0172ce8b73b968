"""Memory for probes: what is free, how sets lie, and how much of it is on huge pages."""

import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from clustergauge import memory
from clustergauge.probe import Context, Skip
from clustergauge.world import Serial
from kernels import buffers

MAPPING = """\
{low:x}-{high:x} rw-p 00000000 00:00 0 {name}
Size:             {size} kB
Rss:              {rss} kB
AnonHugePages:    {huge} kB
ShmemPmdMapped:        0 kB
VmFlags: rd wr mr mw me ac hg
"""


def mapping(low, high, rss, huge, name=""):
    return MAPPING.format(low=low, high=high, size=(high - low) >> 10, rss=rss, huge=huge, name=name)


def tensor(low, high):
    return types.SimpleNamespace(data_ptr=lambda: low, nbytes=high - low)


SMAPS = (
    mapping(0x1000, 0x2000, 4, 0, "/usr/bin/python3.11")
    + mapping(0x100000000, 0x110000000, 262144, 260096)
    + mapping(0x110000000, 0x110800000, 8192, 0)
    + mapping(0x200000000, 0x210000000, 262144, 0)
    + mapping(0x7FFF00000000, 0x7FFF00021000, 132, 0, "[stack]")
)


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0x100000040, 0x10FFFFF00)], 0.992),
        ([(0x200000040, 0x20FFFFF00)], 0.0),
        ([(0x100000040, 0x10FFFFF00), (0x200000040, 0x20FFFFF00)], 0.496),
        ([(0x10FFFF000, 0x110001000)], 0.962),  # lies on two mappings
        ([(0x300000000, 0x310000000)], None),
        ([(0x2000, 0x3000)], None),  # begins where a mapping ends
        ([], None),
    ],
)
def test_share_of_huge_pages_is_that_of_the_mappings_that_hold_the_arrays(spans, share):
    assert buffers.huge_share([tensor(*span) for span in spans], SMAPS) == share


def test_share_of_huge_pages_is_unknown_where_the_kernel_says_nothing():
    held = [tensor(0x100000040, 0x10FFFFF00)]
    silent = SMAPS.replace("AnonHugePages", "AnonOther")
    assert buffers.huge_share(held, "") is None
    assert buffers.huge_share(held, silent) is None


@given(st.text(alphabet="0123456789abcdef- kBRsAnonHugePages:\n", max_size=300))
def test_no_text_breaks_the_reader_of_smaps(text):
    share = buffers.huge_share([tensor(0, 1 << 48)], text)
    assert share is None or share >= 0


def test_arrays_of_this_process_are_found():
    array = torch.zeros(1 << 20)
    share = buffers.huge_share([array], Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace"))
    assert share is None or 0 <= share <= 1


def test_free_memory_is_what_the_kernel_and_control_groups_leave(monkeypatch):
    assert 0 < buffers.free_bytes("cpu") < 1 << 60
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000 << 10)
    assert buffers.free_bytes("cpu") == 1000 << 10
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    with pytest.raises(RuntimeError, match="cannot tell how much memory is available"):
        buffers.free_bytes("cpu")


@pytest.mark.parametrize(
    ("free", "most", "interpret", "sets", "cache", "reason"),
    [
        (1 << 30, 512, False, 30, "cold", None),
        (60 << 20, 30, False, 30, "cold", None),
        (59 << 20, 512, False, 1, "hot", "at most 29 are to be had: half of the free memory holds no more"),
        (1 << 20, 512, False, 1, "hot", "at most 1 are to be had: half of the free memory holds no more"),
        (1 << 30, 29, False, 1, "hot", "at most 29 are to be had: no more are made"),
        (1 << 30, 512, True, 1, "none", None),
        (1 << 20, 512, True, 1, "none", None),
    ],
)
def test_sets_defeat_the_cache_or_one_is_hot_and_the_record_says_why(
    tmp_path, monkeypatch, free, most, interpret, sets, cache, reason
):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: free)
    ctx = Context(Serial(), "cpu", 1, tmp_path, interpret=interpret, llc_bytes=10 << 20)
    assert buffers.rotation(ctx, 1 << 20, most) == (sets, cache)
    assert ctx.settings["buffer_sets"] == sets
    assert ctx.settings.get("cache_reason") == (reason and f"30 buffer sets would defeat the cache, {reason}")


def test_a_set_that_no_cache_holds_is_cold_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 31 << 20)  # half of it is less than the set
    ctx = Context(Serial(), "cpu", 1, tmp_path, llc_bytes=1 << 20)
    assert buffers.rotation(ctx, 20 << 20, 512) == (1, "cold")


def test_more_than_four_fifths_of_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(buffers, "free_bytes", lambda _: 1000 << 20)
    buffers.require(800 << 20, "cpu")
    with pytest.raises(Skip, match="needs 801MiB of memory, 1000MiB is free on cpu"):
        buffers.require((801 << 20) + 7, "cpu")


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([torch.int8, torch.bfloat16, torch.float32, torch.float64]),
)
def test_sets_are_aligned_row_major_and_apart(sets, rows, columns, dtype):
    stack = buffers.stack(sets, rows, columns, dtype, "cpu")
    assert stack.shape == (sets, rows, columns)
    starts = [one.data_ptr() for one in stack]
    assert all((start - starts[0]) % buffers.ALIGNMENT == 0 for start in starts)
    assert all(one.is_contiguous() for one in stack)
    for index, one in enumerate(stack):
        one.fill_(index + 1)
    assert [one.unique().tolist() for one in stack] == [[index + 1] for index in range(sets)]
