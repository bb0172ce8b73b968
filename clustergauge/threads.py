"""The same for many nodes at once: a thread for each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def started(function: Callable[[str], object], names: Iterable[str]) -> list[threading.Thread]:
    """Threads that call the function, one for every name."""
    threads = [threading.Thread(target=function, args=(name,), name=name, daemon=True) for name in names]
    for thread in threads:
        thread.start()
    return threads


def in_threads(function: Callable[[str], object], names: Iterable[str]) -> None:
    """Call the function for every name, each in a thread, and wait for all."""
    for thread in started(function, names):
        thread.join()
