"""Failures of storage as a person reads them: one sentence with the file and the cause."""

from __future__ import annotations


class StorageError(OSError):
    """``StorageError("cannot write /data/x at byte 4096", error)``: what could not be done, and the system's own reason for it.

    ``errno`` is that of the cause.  ``rank``: whose, where it is not the one that raises.
    """

    rank: int | None = None

    def __init__(self, failed: str, cause: OSError) -> None:
        reason = cause.strerror or str(cause)
        super().__init__(cause.errno, f"{failed}: {reason[:1].lower()}{reason[1:]}")

    @classmethod
    def quoted(cls, text: str, rank: int | None = None) -> StorageError:
        """What another process met, in its own words."""
        error = cls(text, OSError(""))
        error.args, error.rank = (None, text), rank
        return error

    def __str__(self) -> str:
        return str(self.args[1])
