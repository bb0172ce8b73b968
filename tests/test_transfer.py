"""Probe ``transfer``: what must land is known on both sides, every wrong copy is caught, both ways at once are joined."""

import pytest
import torch
from hypothesis import given, strategies as st

from clustergauge import budget
from clustergauge.errors import UsageError
from clustergauge.execute import execute
from clustergauge.messages import Job
from clustergauge.probe import Context, Probe, Skip, Wrong
from clustergauge.world import Serial
from kernels import transfer

N = 70_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def outcome(tmp_path):
    """Runs the work of copies between tensors of this processor: all but the bus and its clock."""

    def run(copy=lambda out, source: out.copy_(source), ways=1, n=N):
        landings, calls = [], []
        for way in range(ways):
            source, out = torch.empty((2, n), dtype=torch.int64)
            landing = transfer.Landing(out, 5 + way)
            landing.fill(source)
            landings.append(landing)
            calls.append(lambda out=out, source=source: copy(out, source))
        work = lambda ctx: transfer.work_of(lambda: [call() for call in calls], landings, lambda: None, pinned=False)  # noqa: E731
        job = Job("transfer", "kernels.transfer", "transfer", {}, "cpu", 0.02, 1)
        return execute(job, Probe("transfer", "tests", work, transfer._needs, {}), Serial(), tmp_path, lambda _: None)

    return run


@pytest.mark.parametrize("n", [1, 2, 511, 512, 513, 4096, N])
@pytest.mark.parametrize("ways", [1, 2])
def test_copies_are_right_and_counted_once_where_they_land(outcome, ways, n):
    done = outcome(ways=ways, n=n)
    assert (done.status, done.reason) == ("ok", "")
    assert (done.workload.bytes_read, done.workload.bytes_written) == (0, ways * n * 8)
    assert (done.workload.bound, done.measurement.cache, done.measurement.clock) == ("memory", "none", "wall")
    assert len(done.measurement.digest) == 16 * ways + ways - 1


# -- planted errors


def nothing(out, source):
    pass


def all_but_the_last(out, source):
    out[:-1] = source[:-1]


def all_but_one(out, source):
    keep = out[30_001].clone()
    out.copy_(source)
    out[30_001] = keep


def shifted(out, source):
    out.copy_(source.roll(1))


def a_page_twice(out, source):
    out.copy_(source)
    out[512:1024] = source[:512]


def a_bit_flipped(out, source):
    out.copy_(source)
    out[40_000] ^= 1 << 62


def in_halves_swapped(out, source):
    out.copy_(source.roll(N // 2))


@pytest.mark.parametrize(
    ("copy", "byte"),
    [
        (nothing, 0),
        (all_but_the_last, 8 * (N - 1)),
        (shifted, 0),
        (a_page_twice, 8 * 512),
        (a_bit_flipped, 8 * 40_000),
        (in_halves_swapped, 0),
    ],
)
@pytest.mark.parametrize("ways", [1, 2])
def test_planted_errors_end_the_case_as_wrong(outcome, copy, byte, ways):
    done = outcome(copy, ways)
    assert (done.status, done.measurement) == ("wrong", None)
    assert done.reason.startswith(f"byte {byte} on the host: expected ")


def test_a_word_that_is_never_copied_is_caught_wherever_it_is(outcome):
    """Not among those that are poisoned before a sample."""
    landing = transfer.Landing(torch.empty(N, dtype=torch.int64), 5)
    assert 30_001 not in landing.places.tolist()
    assert outcome(all_but_one).reason.startswith("byte 240008 on the host: expected ")


def test_a_word_that_is_copied_only_at_first_is_caught_by_the_exact_pass(outcome):
    copied = []

    def lazily(out, source):
        keep = out[30_001].clone()
        out.copy_(source)
        if copied:
            out[30_001] = keep
        copied.append(1)

    assert outcome(lazily).reason.startswith("byte 240008 on the host: expected ")


def test_the_second_of_two_ways_is_looked_at_too(outcome):
    made = []

    def only_the_first(out, source):
        made.append(1)
        if len(made) % 2:
            out.copy_(source)

    assert outcome(only_the_first, ways=2).reason.startswith("byte 0 on the host: expected ")


def test_copies_that_are_right_at_first_only_are_caught(outcome):
    made = []

    def waver(out, source):
        made.append(1)
        out.copy_(source)
        if len(made) > 3:
            out[40_000] ^= 1

    assert outcome(waver).reason.startswith("byte 320000 on the host: expected ")


def test_the_digest_tells_memories_apart_that_differ_in_one_bit():
    landing = transfer.Landing(torch.empty(N, dtype=torch.int64), 5)
    landing.fill(landing.out)
    seen = {landing.digest()}
    for bit in (0, 31, 63):
        landing.out[40_000] ^= 1 << bit if bit < 63 else -(1 << 63)
        seen.add(landing.digest())
    assert len(seen) == 4


# -- what must land


def test_words_are_one_to_one_and_vary_in_every_bit():
    landing = transfer.Landing(torch.empty(8192, dtype=torch.int64), 1)
    words = landing.words(torch.arange(8192))
    assert len(words.unique()) == 8192
    seen = [int(words[0] ^ word) for word in words]
    assert all(any(difference >> bit & 1 for difference in seen) for bit in range(64))


@given(st.lists(st.integers(0, transfer._LARGEST // 8 - 1), min_size=1, max_size=20), st.integers(0, 2**40))
def test_words_are_those_of_unbounded_integers_up_to_the_largest_copy(indices, seed):
    landing = transfer.Landing(torch.empty(1, dtype=torch.int64), seed)
    for index, word in zip(indices, landing.words(torch.tensor(indices)).tolist(), strict=True):
        value = index * transfer._FACTOR + seed % (1 << 20)
        assert value < 1 << 63
        assert word % (1 << 64) == value ^ (value << 33) % (1 << 64)


@pytest.mark.parametrize("n", [1, 700, N])
def test_poison_is_wrong_in_both_ends_and_in_every_stretch_and_spoiling_is_wrong_everywhere(n):
    landing = transfer.Landing(torch.empty(n, dtype=torch.int64), 1)
    right = landing.words(torch.arange(n))
    landing.fill(landing.out)
    landing.check()
    landing.poison()
    wrong = (landing.out != right).nonzero().flatten()
    assert torch.equal(wrong, landing.places)
    assert {*range(min(n, 512)), *range(max(0, n - 512), n)} <= set(wrong.tolist())
    assert int(wrong.diff().max() if n > 1 else 0) <= 2 * -(-n // transfer.SAMPLES)
    landing.spoil()
    assert bool((landing.out != right).all())


def test_pieces_of_the_check_meet_without_a_gap(monkeypatch):
    monkeypatch.setattr(transfer, "_CHUNK", 1000)
    landing = transfer.Landing(torch.empty(3001, dtype=torch.int64), 1)
    landing.fill(landing.out)
    landing.check()
    for place in (0, 999, 1000, 2999, 3000):
        landing.out[place] += 1
        with pytest.raises(Wrong, match=f"^byte {8 * place} on the host: expected [0-9a-f]{{16}}, got [0-9a-f]{{16}}$"):
            landing.check()
        landing.out[place] -= 1


# -- both ways at once


class Streams:
    """Stands in for ``torch.cuda``: what was asked, in order."""

    def __init__(self):
        self.log, self.made, self.now = [], {"stream": 0, "event": 0}, "clock"

    def name(self, kind):
        self.made[kind] += 1
        return f"{kind}{self.made[kind]}"

    def Event(self):  # noqa: N802 (as torch calls it)
        return Event(self, self.name("event"))

    def Stream(self, device):  # noqa: N802
        return Stream(self, self.name("stream"))

    def current_stream(self, device):
        return Stream(self, self.now)

    def stream(self, stream):
        return stream


class Stream:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def wait_event(self, event):
        self.cuda.log.append(f"{self.name} waits for {event.name}")

    def __enter__(self):
        self.before, self.cuda.now = self.cuda.now, self.name

    def __exit__(self, *_):
        self.cuda.now = self.before


class Event:
    def __init__(self, cuda, name):
        self.cuda, self.name = cuda, name

    def record(self, stream):
        self.cuda.log.append(f"{self.name} on {stream.name}")


def test_both_ways_begin_after_the_clock_s_stream_and_it_goes_on_after_both():
    cuda = Streams()
    copies = [lambda way=way: cuda.log.append(f"{way} on {cuda.now}") for way in ("up", "down")]
    run = transfer._at_once(cuda, torch.device("cuda:0"), copies)
    once = [
        "event1 on clock",
        "stream1 waits for event1",
        "up on stream1",
        "event2 on stream1",
        "stream2 waits for event1",
        "down on stream2",
        "event3 on stream2",
        "clock waits for event2",
        "clock waits for event3",
    ]
    run()
    assert cuda.log == once
    run()
    assert cuda.log == 2 * once


# -- what is refused


def test_a_processor_has_no_bus_to_itself(tmp_path):
    job = Job("transfer", "kernels.transfer", "transfer", {"direction": "both", "host": "pinned", "size": 4096}, "cpu", 0.1, 1)
    done = execute(job, transfer.transfer, Serial(), tmp_path, lambda _: None)
    assert (done.status, done.reason) == ("skipped", "a processor has no bus to itself: host and device are one")


def test_pageable_copies_cannot_go_both_ways_at_once(tmp_path):
    with pytest.raises(Skip, match=r"^both directions at once need pinned memory: a copy of pageable memory holds its thread"):
        transfer.transfer.function(Context(Serial(), "cuda:0", 1, tmp_path), direction="both", host="pageable", size=4096)


@pytest.fixture
def trial(monkeypatch):
    """Makes a smaller copy that takes given seconds one after the other, and then the last for ever; ``trials`` are counted."""

    def taking(*seconds):
        class Clock:
            def time(self, calls):
                trials.append(1)
                calls[0]()
                return seconds[min(len(trials), len(seconds)) - 1]

        trials.clear()
        monkeypatch.setattr(budget, "WallClock", Clock)
        return lambda: None

    trials = taking.trials = []
    return taking


def test_a_copy_longer_than_the_budget_is_skipped_with_the_reason(tmp_path, trial):
    ctx = Context(Serial(), "cuda:0", 1, tmp_path, budget_s=2.0)
    transfer.refuse(ctx, trial(0.002), 1000.0)
    assert len(trial.trials) == 1  # that was enough
    with pytest.raises(Skip, match=r"^one copy would take about 2\.15 s, the budget is 2 s: a smaller size fits$"):
        transfer.refuse(ctx, trial(0.00215), 1000.0)


@pytest.mark.parametrize("late", [1, 4, 90])
def test_a_busy_moment_skips_no_copy(tmp_path, trial, late):
    ctx = Context(Serial(), "cuda:0", 1, tmp_path, budget_s=2.0)
    transfer.refuse(ctx, trial(*[0.01] * late, 0.001), 1000.0)
    with pytest.raises(Skip):
        transfer.refuse(ctx, trial(*[0.01] * 101, 0.001), 1000.0)  # longer than half of the budget


@pytest.mark.parametrize("size", [0, 4, 12, (16 << 30) + 8])
def test_sizes_that_are_no_words_are_the_users_mistake(size):
    with pytest.raises(UsageError, match=f"size {size}: copies are whole 8-byte words, at most 16GiB"):
        transfer.transfer.needs_of({"direction": "both", "host": "pinned", "size": size})


def test_needs_name_the_device():
    needs = transfer.transfer.needs_of({"direction": "both", "host": "pinned", "size": 8})
    assert (needs.device, needs.modules, needs.interpreter) == ("cuda", ("torch",), False)


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["to_device", "from_device", "both"])
@pytest.mark.parametrize("host", ["pinned", "pageable"])
@pytest.mark.parametrize("size", [4096, (16 << 20) + 8])
def test_copies_of_a_gpu_are_right(tmp_path, direction, host, size):
    job = Job("transfer", "kernels.transfer", "transfer", {"direction": direction, "host": host, "size": size}, "cuda:0", 0.2, 1)
    done = execute(job, transfer.transfer, Serial(), tmp_path, lambda _: None)
    if (direction, host) == ("both", "pageable"):
        assert done.status == "skipped"
        return
    assert (done.status, done.reason) == ("ok", "")
    assert done.measurement.clock == ("cuda_event" if host == "pinned" else "wall")
