"""Closing what was used, so that a failure to close hides no failure before it."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from clustergauge.probe import Skip


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> object:
        """Let go of it."""


C = TypeVar("C", bound=Closable)


class closing(Generic[C]):
    """`contextlib.closing`; but what fails in closing after an error is a note of that error, and not in its place.

    A device that fails takes its file system with it: what could not be removed then is worth telling, and what came before it
    more so.  After a `Skip`, by which nothing has gone wrong yet, the failure is raised.
    """

    def __init__(self, thing: C) -> None:
        self._thing = thing

    def __enter__(self) -> C:
        return self._thing

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self._thing.close()
        except Exception as left:
            if error is None or isinstance(error, Skip):
                raise
            error.add_note(f"{left}")


def told(error: BaseException) -> str:
    """An error and its notes, in one line."""
    return " ".join("; ".join([f"{error}", *getattr(error, "__notes__", [])]).split())
