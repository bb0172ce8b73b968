"""Many small things made to begin with: how often they are taken to the device, and when it is seen that they take too long."""

import itertools

import pytest

from clustergauge.probe import Skip
from storage_io import layout
from tests.on_disk import slow


def made(count, most_s=1e9, **more):
    """What was made and synced, in this order, until it was over or given up."""
    done, said = [], ""
    try:
        layout.make_all(count, most_s, done.append, "making them", lambda: done.append("sync"), **more)
    except Skip as skip:
        said = str(skip)
    return done, said


def synced(done):
    """After which of the things."""
    return [before for before, what in itertools.pairwise(done) if what == "sync"]


@pytest.mark.parametrize(
    ("count", "every", "after"),
    [
        (1, 10**9, [1]),
        (16, 10**9, [16]),
        (100, 10**9, [16, 32, 64, 100]),
        (128, 10**9, [16, 32, 64, 128]),
        (100, 20, [16, 32, 52, 72, 92, 100]),
        (4, 1, [1, 2, 3, 4]),
    ],
)
def test_all_are_made_in_order_and_synced_when_they_have_doubled(count, every, after):
    done, said = made(count, every=every)
    assert [what for what in done if what != "sync"] == list(range(1, count + 1))
    assert synced(done) == after
    assert said == ""


def test_a_guess_waits_for_a_sync_and_what_has_taken_too_long_does_not(monkeypatch):
    monkeypatch.setattr(layout, "stopwatch", slow(0.5))
    assert made(1000, 10.0)[1] == "making them would take 500 s (at most 10 s)"
    assert len(made(1000, 10.0)[0]) == layout.FEW + 1
    monkeypatch.setattr(layout, "stopwatch", slow(4.0))
    assert made(1000, 10.0, remedy="; wait") == ([1, 2, 3], "making them would take 4000 s (at most 10 s; wait)")


def test_the_last_sync_counts(monkeypatch):
    took = iter([*(0.0,) * 99, 11.0])
    monkeypatch.setattr(layout, "stopwatch", lambda: lambda: next(took))
    assert made(100, 10.0)[1] == "making them would take 11 s (at most 10 s)"


def test_a_first_that_is_late_is_no_reason_to_give_up(monkeypatch):
    took = iter([0.9, *(0.9 + 0.001 * n for n in range(1, 1000))])
    monkeypatch.setattr(layout, "stopwatch", lambda: lambda: next(took))
    done, said = made(1000, 10.0)
    assert said == ""
    assert done[-2:] == [1000, "sync"]


def test_where_some_will_do_no_more_are_made_than_there_is_time_for(monkeypatch):
    def some(step_s, enough):
        monkeypatch.setattr(layout, "stopwatch", slow(step_s))
        made = []
        count = layout.make_all(100, 10.0, made.append, "making them", lambda: made.append("sync"), enough=enough)
        assert made[-1] == "sync"
        assert count == len([what for what in made if what != "sync"])
        return count

    assert some(0.1, 20) == 100
    assert some(0.11, 20) == 46  # half of the time
    assert some(0.11, 60) == 60
    assert some(0.11, 32) == 46
    assert some(0.19, 50) == 50
    for enough, s in ((53, 10), (100, 19)):
        with pytest.raises(Skip, match=rf"^making them would take 19 s, {enough} of them {s} s .at most 10 s.$"):
            some(0.19, enough)


@pytest.mark.parametrize("late", [21, 99, 100])
def test_where_some_will_do_one_that_is_late_takes_none_away(monkeypatch, late):
    made = []
    monkeypatch.setattr(layout, "stopwatch", lambda: lambda: 0.01 * len(made) + 20 * (made[-1] >= late))
    count = layout.make_all(100, 10.0, made.append, "making them", enough=20)
    assert count == made[-1] == late
