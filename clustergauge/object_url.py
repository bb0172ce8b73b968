"""``s3://bucket/prefix``: an object store as target.  Where its endpoint is and who may use it is not part of it."""

from __future__ import annotations

import re
from typing import NamedTuple

from clustergauge.errors import UsageError

SCHEME = "s3://"
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]*", re.ASCII)
_LONGEST = 800
"""Of a prefix, in bytes: a key may have 1024, and ours adds to it."""


class ObjectUrl(NamedTuple):
    """``prefix``: without slashes at its ends; empty for the whole bucket."""

    bucket: str
    prefix: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, name: str) -> str:
        """The key of ``name`` under the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name


def is_url(target: object) -> bool:
    """Whether a target names something else than a folder."""
    return "://" in str(target)


def parse(text: str) -> ObjectUrl:
    """The bucket and the prefix.  Raises `UsageError`, which never repeats the text: a secret may stand in it."""
    if not text.startswith(SCHEME):
        raise UsageError("--target: of URLs only s3://bucket/prefix is known (a folder needs no file://)")
    if any(sign in text for sign in "@?#%"):
        raise UsageError(
            "--target: s3://bucket/prefix and nothing else: endpoint and credentials come from the environment or ~/.aws, "
            "never from the command line"
        )
    bucket, _, prefix = text.removeprefix(SCHEME).partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError("--target: after s3:// stands the name of a bucket: 3 to 63 letters, digits, '.', '_' and '-'")
    if len(prefix) > _LONGEST or not all(_SEGMENT.fullmatch(part) for part in prefix.split("/") if prefix):
        raise UsageError(
            f"--target: a prefix has at most {_LONGEST} letters, digits and any of ._=+- between single slashes; "
            "no part of it begins with a dot"
        )
    return ObjectUrl(bucket, prefix)
