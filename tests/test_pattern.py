"""Data that tells whose it is: every error planted in it is found and named."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from clustergauge.probe import Wrong
from storage_io.pattern import BASE_BYTES, STAMP_EVERY, Pattern, aligned

PATH = Path("/data/data-0")
PATTERN = Pattern()
BLOCKS = 8


def content(size=BLOCKS * STAMP_EVERY, file=1, sample=2, pattern=PATTERN):
    out = aligned(size)
    pattern.fill(out, file, sample)
    return out


def blocks_of(words):
    return words.reshape(-1, STAMP_EVERY // 8)


def test_buffers_are_aligned_for_direct_io():
    assert all(aligned(size).ctypes.data % 4096 == 0 for size in (4096, 8192, 1 << 20))


def test_no_two_blocks_are_the_same_even_past_the_repeat():
    words = content(BASE_BYTES + 16 * STAMP_EVERY)
    rows = [row.tobytes() for row in blocks_of(words)]
    assert len(set(rows)) == len(rows)
    PATTERN.verify(words, PATH, 1, 2)


def test_it_cannot_be_compressed():
    data = content(1 << 20).tobytes()
    assert len(zlib.compress(data, 9)) > 0.99 * len(data)


@given(st.integers(0, BLOCKS * STAMP_EVERY - 1), st.integers(0, 7))
def test_any_flipped_bit_is_found_at_its_byte(at, bit):
    words = content()
    view = words.view(np.uint8)
    was = int(view[at])
    view[at] ^= 1 << bit
    now = was ^ (1 << bit)
    with pytest.raises(Wrong, match=f"^{PATH} differs at byte {at}: expected {was:#04x}, got {now:#04x}.*wrong in this part: 1$"):
        PATTERN.verify(words, PATH, 1, 2)


@settings(max_examples=30)
@given(st.integers(0, BASE_BYTES // STAMP_EVERY + BLOCKS - 1), st.integers(1, BLOCKS))
def test_a_part_is_verified_at_its_place_and_nowhere_else(first, count):
    words = WHOLE[first * 512 : (first + count) * 512]
    PATTERN.verify(words, PATH, 1, 2, first * STAMP_EVERY)
    with pytest.raises(Wrong):
        PATTERN.verify(words, PATH, 1, 2, (first + 1) * STAMP_EVERY)


WHOLE = content(BASE_BYTES + 2 * BLOCKS * STAMP_EVERY)


def test_misplaced_stale_and_foreign_blocks_are_named():
    words = content()
    blocks_of(words)[3] = blocks_of(words)[5]
    message = r"byte 12304: .*\(file 1, block 5, sample 2 lies where file 1, block 3, sample 2 belongs\); .*: 1"  # 3 · 4096 + 16
    with pytest.raises(Wrong, match=message):
        PATTERN.verify(words, PATH, 1, 2)
    with pytest.raises(Wrong, match=re.escape("(file 1, block 0, sample 1 lies where file 1, block 0, sample 2 belongs)")):
        PATTERN.verify(content(sample=1), PATH, 1, 2)
    with pytest.raises(Wrong, match=re.escape("(file 7, block 0, sample 2 lies where file 1, block 0, sample 2 belongs)")):
        PATTERN.verify(content(file=7), PATH, 1, 2)
    with pytest.raises(Wrong) as caught:
        PATTERN.verify(content(pattern=Pattern()), PATH, 1, 2)
    assert "lies where" not in str(caught.value)  # of another run: its stamp says nothing about places


def test_the_byte_is_counted_from_the_start_of_the_file():
    words = content()
    words[512 + 10] ^= np.uint64(1)
    with pytest.raises(Wrong, match=f"byte {STAMP_EVERY + 80}:"):
        PATTERN.verify(words, PATH, 1, 2)
    PATTERN.verify(words[:512], PATH, 1, 2)
    with pytest.raises(Wrong, match=f"byte {STAMP_EVERY + 80}:"):
        PATTERN.verify(words[512:], PATH, 1, 2, STAMP_EVERY)


def test_restamping_makes_it_another_sample():
    words = content(sample=2)
    PATTERN.restamp(words, 3)
    PATTERN.verify(words, PATH, 1, 3)
    assert (words == content(sample=3)).all()
