"""Threads side by side: every item once, as many at a time as asked, and the error that came first."""

import threading

import pytest

from storage_io.lanes import Lanes


@pytest.fixture
def lanes_of():
    made = []

    def make(depth, transfer):
        made.append(Lanes([transfer] * depth))
        return made[-1]

    yield make
    for lanes in made:
        lanes.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("lane-")]


@pytest.mark.parametrize("depth", [1, 2, 8])
@pytest.mark.parametrize("count", [0, 1, 3, 200])
def test_every_item_is_transferred_once_in_every_run(lanes_of, depth, count):
    done = []
    lanes = lanes_of(depth, lambda a, b: done.append((a, b)))
    for _ in range(2):
        done.clear()
        lanes.run([(n, -n) for n in range(count)])
        assert sorted(done) == [(n, -n) for n in range(count)]


def test_one_lane_goes_in_order(lanes_of):
    done = []
    lanes_of(1, done.append).run([(n,) for n in range(50)])
    assert done == list(range(50))


def test_as_many_are_under_way_as_asked(lanes_of):
    meeting = threading.Barrier(8, timeout=10)  # broken unless eight are in at once
    lanes_of(8, lambda _: meeting.wait()).run([(n,) for n in range(8)])


def test_an_error_stops_what_has_not_begun(lanes_of):
    done = []

    def fail_at_three(n):
        if n == 3:
            raise OSError("planted")
        done.append(n)

    lanes = lanes_of(1, fail_at_three)
    with pytest.raises(OSError, match="planted"):
        lanes.run([(n,) for n in range(10)])
    assert done == [0, 1, 2]
    done.clear()
    lanes.run([(n,) for n in range(3)])  # the lanes live on
    assert done == [0, 1, 2]


def test_an_error_in_a_helper_reaches_the_caller(lanes_of):
    meeting = threading.Barrier(4, timeout=10)

    def fail_beside_the_caller(_):
        meeting.wait()  # all four have one item
        if threading.current_thread().name == "lane-2":
            raise OSError("planted in lane 2")

    with pytest.raises(OSError, match="planted in lane 2"):
        lanes_of(4, fail_beside_the_caller).run([(n,) for n in range(4)])


def test_a_signal_in_the_caller_stops_the_helpers(lanes_of):
    begun, go_on, done = threading.Event(), threading.Event(), []

    def transfer(n):
        if threading.current_thread() is threading.main_thread():
            begun.wait(10)
            raise SystemExit(143)
        begun.set()
        go_on.wait(10)
        done.append(n)

    lanes = lanes_of(2, transfer)
    with pytest.raises(SystemExit):
        lanes.run([(n,) for n in range(100)])
    go_on.set()
    lanes.close()
    assert len(done) <= 1


class Watched:
    """Items that tell when they have run out."""

    def __init__(self, count):
        self.left, self.out, self.lock = list(range(count)), threading.Event(), threading.Lock()

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            if not self.left:
                self.out.set()
                raise StopIteration
            return (self.left.pop(0),)


def test_an_error_in_a_helper_leaves_nothing_for_the_others(lanes_of):
    items, meeting, done = Watched(100), threading.Barrier(2, timeout=10), []

    def transfer(n):
        meeting.wait()
        if threading.current_thread() is not threading.main_thread():
            raise OSError("planted")
        assert items.out.wait(10)
        done.append(n)

    with pytest.raises(OSError, match="planted"):
        lanes_of(2, transfer).run(items)
    assert len(done) == 1


def test_a_signal_before_all_lanes_are_released_leaves_nothing_for_them(lanes_of):
    items, go_on = Watched(100), threading.Event()
    lanes = lanes_of(3, lambda _: go_on.wait(10))

    class Interrupted:
        """Hands out work once; then the signal comes."""

        def __init__(self, real):
            self.get, self.put_once = real.get, [real.put]

        def put(self, item):
            if not self.put_once:
                raise SystemExit(143)
            self.put_once.pop()(item)

    real = lanes._go
    lanes._go = Interrupted(real)
    with pytest.raises(SystemExit):
        lanes.run(items)
    lanes._go = real
    assert items.out.is_set()
    go_on.set()
