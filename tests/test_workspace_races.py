"""Run folders whose owners and sweepers meet: every order of their steps that takes a few changes from one to the other.

Both are threads of this process (a lock is of an open file, so they keep each other out as processes do), and the steps are their
system calls: before each a thread waits for its turn.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque

import pytest

from storage_io import workspace
from tests.on_disk import names

CALLS = ("open", "scandir", "fstat", "pread", "write", "unlink", "rmdir", "close")
OWNER, SWEEPER = "owner", "sweeper"
OF_OWNER, OF_SWEEPER = range(7), range(16)
"""Steps of one before the other goes on: as many as either has, and more."""


class Turns:
    """``order``: who does the next step; once it is used up, or who is named has ended, whoever comes."""

    def __init__(self, order):
        self._order = deque(order)
        self._changed = threading.Condition()
        self._at_work = ""
        self._waiting, self._ended = set(), set()
        self.steps = dict.fromkeys((OWNER, SWEEPER), 0)

    def step(self):
        """The last step of this thread is done; wait for the turn of the next."""
        who = threading.current_thread().name
        if who not in self.steps:
            return
        with self._changed:
            self._waiting.add(who)
            self._leave(who)
            assert self._changed.wait_for(lambda: not self._at_work and self._may(who), 20)
            self._waiting.remove(who)
            self._at_work = who
            self.steps[who] += 1
            if self._order:
                self._order.popleft()

    def end(self):
        """This thread does nothing more."""
        who = threading.current_thread().name
        with self._changed:
            self._ended.add(who)
            self._leave(who)

    def until_it_waits(self, who):
        with self._changed:
            assert self._changed.wait_for(lambda: who in self._waiting | self._ended, 20)

    def _may(self, who):
        while self._order and self._order[0] in self._ended:
            self._order.popleft()
        return not self._order or self._order[0] == who

    def _leave(self, who):
        if self._at_work == who:
            self._at_work = ""
        self._changed.notify_all()


class Stepped:
    """The module ``os`` as `workspace` sees it: its system calls wait for their turn."""

    def __init__(self, turns):
        self._turns = turns

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*given, **named):
            self._turns.step()
            return real(*given, **named)

        return call


def orders():
    """The owner does some steps, then the sweeper some, then the owner; and both what is left."""
    for first, second, third in itertools.product(OF_OWNER, OF_SWEEPER, OF_OWNER):
        if second or not third:
            yield [OWNER] * first + [SWEEPER] * second + [OWNER] * third


def in_order(monkeypatch, order, owner, sweeper):
    """What both return, and how many steps each took; the sweeper begins when the owner is about to make its first step."""
    turns, returned = Turns(order), {}

    def do(who, what):
        try:
            returned[who] = what()
        except Exception as error:  # noqa: BLE001 (compared with what must be returned)
            returned[who] = error
        finally:
            turns.end()

    with monkeypatch.context() as patch:
        try_lock = workspace._try_lock
        patch.setattr(workspace, "os", Stepped(turns))
        patch.setattr(workspace, "_try_lock", lambda descriptor: (turns.step(), try_lock(descriptor))[1])
        threads = [threading.Thread(target=do, args=(who, what), name=who) for who, what in ((OWNER, owner), (SWEEPER, sweeper))]
        threads[0].start()
        turns.until_it_waits(OWNER)
        threads[1].start()
        for thread in threads:
            thread.join()
    assert all(turns.steps.values())
    return returned[OWNER], returned[SWEEPER], turns.steps


@pytest.fixture
def target(tmp_path):
    return tmp_path.resolve()


def test_a_folder_that_is_swept_while_it_is_made_is_whole_or_another(target, monkeypatch):
    taken, steps = 0, []
    for order in orders():
        (path, lock), swept, count = in_order(
            monkeypatch, order, lambda: workspace._make(target), lambda: workspace.sweep(target)
        )
        steps.append(count)
        taken += len(swept)
        assert path.name not in swept, order
        assert names(path) == ["lock"], order
        assert workspace.sweep(target) == [], order
        os.close(lock)
        assert workspace.sweep(target) == [path.name], order
        assert names(target) == [], order
    assert 0 < taken < len(steps)  # it came too late, too, and in between
    assert min(count[OWNER] for count in steps) < len(OF_OWNER)  # all orders of two changes were there
    assert max(count[SWEEPER] for count in steps) < len(OF_SWEEPER)


def test_a_folder_that_is_swept_while_it_is_removed_is_gone_without_a_word(target, monkeypatch):
    for order in orders():
        space = workspace.Workspace(target, 0, spare=0)
        space.file(0).touch()
        ended, swept, _ = in_order(monkeypatch, order, space.close, lambda: workspace.sweep(target))
        assert ended is None, order
        assert swept in ([], [space.path.name]), order
        assert names(target) == [], order


def test_of_two_sweepers_one_removes_what_is_dead(target, monkeypatch):
    for order in orders():
        path, lock = workspace._make(target)
        (path / "data-0").touch()
        os.close(lock)
        swept = in_order(monkeypatch, order, lambda: workspace.sweep(target), lambda: workspace.sweep(target))[:2]
        assert sorted(swept) == [[], [path.name]], order
        assert workspace.sweep(target) == [], order
        assert names(target) == [], order
