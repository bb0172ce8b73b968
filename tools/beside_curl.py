"""Requests to an object store beside curl, in turn: the same objects, the same store, one connection kept open on both sides.

    .venv/bin/python -m tools.beside_curl s3://BUCKET/PREFIX [PAIRS]

For each pattern the ratio of our rate to curl's: median over PAIRS (9), the smallest and the largest; then the same of curl to
itself, which says what the store's own unrest makes of a ratio.  curl asks for many small objects by one command, which keeps
its connections (``--parallel``), and is timed by itself, less what it takes to start.  Endpoint and keys are those of the
environment or ``~/.aws``; curl reads them from its standard input, for a command line can be seen by everybody.

Without TLS we hash what we put, to sign it, and curl does not: large puts compare by an endpoint of https.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

from clustergauge import object_url
from clustergauge.budget import seconds
from clustergauge.probe import Context, Skip, Wrong
from clustergauge.world import Serial
from storage_io.errors import StorageError
from storage_io.object_client import PART_BYTES, Client
from storage_io.object_login import Login
from storage_io.object_space import ObjectSpace
from storage_io.object_store import make_op
from storage_io.pattern import Pattern, aligned

PAIRS = 9
SMALL, LARGE = 64 << 10, 64 << 20
OBJECTS = 64
NOTHING = 'silent\nurl = "file:///dev/null"\noutput = "/dev/null"'
"""What curl is asked for to see how long it takes to start."""


class Turn(NamedTuple):
    """``at_once``: requests in flight."""

    op: str
    size: int
    at_once: int

    @property
    def count(self) -> int:
        """Objects of one turn."""
        return 1 if self.size > PART_BYTES else OBJECTS


TURNS = [
    Turn(op, size, at_once)
    for size, all_at_once in ((SMALL, (1, 8)), (LARGE, (1,)))
    for op in ("put", "get")
    for at_once in all_at_once
]


class Curl:
    """curl with the keys of the login."""

    def __init__(self, login: Login, bucket: str, scratch: Path) -> None:
        frozen = login.frozen()
        self._where = f"{login.endpoint.rstrip('/')}/{bucket}"
        self._scratch = scratch
        token = [f'header = "x-amz-security-token: {frozen.token}"'] if frozen.token else []
        unsigned = 'header = "x-amz-content-sha256: UNSIGNED-PAYLOAD"'  # some stores refuse a request that has no such header
        self._options = [
            *("silent", "show-error", "fail", f'aws-sigv4 = "aws:amz:{login.region}:s3"'),
            *(f'user = "{frozen.access_key}:{frozen.secret_key}"', *token, unsigned),
            *([f'cacert = "{login.authorities}"'] if login.authorities else []),
        ]

    def seconds(self, turn: Turn, keys: list[str], source: Path) -> float:
        """How long curl takes for these objects, without its own start."""
        transfers = [
            "\n".join(
                [
                    *self._options,
                    f'url = "{self._where}/{key}"',
                    f'upload-file = "{source}"' if turn.op == "put" else 'output = "/dev/null"',
                ]
            )
            for key in keys
        ]
        many = ["parallel", f"parallel-max = {turn.at_once}"] if turn.at_once > 1 else []
        text = "\n".join(many) + "\n" + "\nnext\n".join(transfers)
        return max(seconds(lambda: self._run(text)) - seconds(lambda: self._run(NOTHING)), 1e-6)

    def _run(self, config: str) -> None:
        done = subprocess.run(["curl", "--disable", "--config", "-"], input=config, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"curl failed ({done.returncode}): {done.stderr.splitlines()[:1]}")


def rates(login: Login, url: object_url.ObjectUrl, turn: Turn, pairs: int) -> tuple[list[float], list[float]]:
    """Ratios of us to curl, and of curl to curl; who is first alternates."""
    client = Client(login, url, max(turn.at_once, 16), LARGE)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ctx = Context(world=Serial(), device="cpu", seed=1, scratch=scratch, objects=url, budget_s=60.0)
        ours = stack.enter_context(contextlib.closing(ObjectSpace(url, login, client)))
        theirs = stack.enter_context(contextlib.closing(ObjectSpace(url, login, client)))
        op = make_op(ctx, ours, client, turn.op, turn.at_once, turn.size, turn.count)
        stack.callback(op.close)
        op.populate()
        source = scratch / "source"
        content = aligned(turn.size)
        Pattern().fill(content, 0, 0)
        source.write_bytes(content.tobytes())
        numbers = itertools.count(1)
        keys = [theirs.key(number) for number in itertools.islice(numbers, turn.count)]
        for key in keys:
            client.put(key, content.data.cast("B"))
        curl = Curl(login, url.bucket, scratch)

        def us() -> float:
            op.load(turn.count)
            took = seconds(op.run)
            op.verify(whole=False)
            return took

        def them() -> float:
            if turn.op == "put":  # under new names, as we do
                client.delete_all(keys)
                keys[:] = [theirs.key(number) for number in itertools.islice(numbers, turn.count)]
            return curl.seconds(turn, keys, source)

        us(), them()
        return list(compare(us, them, pairs)), list(compare(them, them, pairs))


def compare(one: Callable[[], float], other: Callable[[], float], pairs: int) -> Iterator[float]:
    """The rate of one over the other's, in pairs."""
    for pair in range(pairs):
        if pair % 2:
            first = one()
            yield other() / first
        else:
            second = other()
            yield second / one()


def main() -> int:
    """Print a line for each pattern."""
    if len(sys.argv) < 2 or not shutil.which("curl"):
        sys.stderr.write("curl is not installed\n" if len(sys.argv) > 1 else f"{__doc__}\n")
        return 2
    url, pairs = object_url.parse(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS
    login = Login()
    for turn in TURNS:
        name = f"{turn.op} {turn.size >> 10} KiB, {turn.at_once} at once"
        try:
            us, same = rates(login, url, turn, pairs)
        except (StorageError, Skip, Wrong) as error:
            sys.stderr.write(f"{name}: {error}\n")
            return 1
        texts = [f"{median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in (us, same)]
        sys.stdout.write(f"{name:28} {texts[0]}   curl to itself {texts[1]}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
