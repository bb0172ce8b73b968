"""A folder of our own in a bucket: always emptied, and emptied by the next run if its owner was killed.

Under the prefix that the user named lie ``clustergauge-<owner>/<id>.owner``, which tells the process that made it, and
``clustergauge-<owner>/<id>/data-<n>``.  ``<owner>``: 16 hex digits of host and user, so that nobody else's are even listed.
``<id>``: 16 hex digits of a case, of which the first eight are those of its run.  Where the process is gone, or another boot of
the host made it and it is a day old, the next run on that host deletes its objects and aborts its multipart uploads, which no
list of objects shows and every bill does.  Nothing of another name is ever deleted.

Runs under one prefix, of whichever host and user, notice each other by marks: empty objects ``clustergauge-at-work/<id>``, each
kept fresh by its case.  Of another's mark only the name and the age are looked at, both by the word of the store; what the time
is there, our own mark tells, which was put a moment before.  So what a killed run left does not count for long, wherever it ran.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from clustergauge import at_work, object_url, processes
from clustergauge.errors import UsageError
from clustergauge.model import Scalar
from clustergauge.object_url import ObjectUrl
from clustergauge.probe import Skip, Wrong
from storage_io.errors import StorageError
from storage_io.object_client import Client
from storage_io.object_errors import failure
from storage_io.object_login import Login
from storage_io.workspace import FOREIGN_AGE_S

AT_WORK = "clustergauge-at-work"
FRESH_S = 300.0
"""Seconds for which a mark counts; its case makes it anew between samples."""
_ID = re.compile("[0-9a-f]{16}", re.ASCII)
_RUN = re.compile(r"([0-9a-f]{16})(\.owner|/data-[0-9]{1,9})", re.ASCII)
_MARK = re.compile(r"([0-9a-f-]{1,40}) ([0-9]{1,20}) ([0-9]{1,10}) ([0-9]{1,20})\n", re.ASCII)
_NO_BOOT = "0"
"""Of a system that has no /proc: who lives there can't be told."""
_ROUNDS = 3
"""How often it is looked whether everything is gone."""


class ObjectSpace:
    """The folder of one case.  Raises `Skip` where the bucket keeps what is deleted, `StorageError` where it can't be used."""

    def __init__(self, url: ObjectUrl, login: Login, client: Client) -> None:
        self._url, self._login, self._client = url, login, client
        self.versions = _versions(login, url)
        if self.versions == "kept":
            raise Skip(f"bucket {url.bucket} keeps the versions of deleted objects, which cost: name one without versioning")
        sweep(url, login, client)
        self._own = at_work.of_run()
        run = self._own + secrets.token_hex(4)
        self.folder = url.key(f"{_owner()}/{run}")
        self._mark = f"{self.folder}.owner"
        self._at_work = _at_work(url, run)
        client.put(self._mark, memoryview(_sign().encode()))

    def key(self, number: int) -> str:
        """Key of data object ``number``."""
        return f"{self.folder}/data-{number}"

    def others(self) -> set[str]:
        """Other runs that are at work under the prefix now, by the first digits of their marks; our own is made anew."""
        self._client.put(self._at_work, memoryview(b""))
        folder, _, own = self._at_work.rpartition("/")
        marks = {name: changed for name, (_, changed) in self._client.listing(folder).items() if _ID.fullmatch(name)}
        now = marks.get(own, float("inf"))  # one that is not even listed proves no other fresh
        return {run for name, changed in marks.items() if (run := name[:8]) != self._own and now - changed < FRESH_S}

    def settings(self) -> dict[str, Scalar]:
        """What a record says of the bucket."""
        return {"bucket_versions": self.versions}

    def close(self) -> None:
        """Delete what is in the folder, abort uploads, and make sure.  Raises `StorageError` if something is left."""
        for _ in range(_ROUNDS):
            _abort(self._login, self._url, _uploads(self._login, self._url, f"{self.folder}/"))
            left = [f"{self.folder}/{name}" for name in self._client.sizes(self.folder)]
            if not left:
                self._client.delete_all([self._at_work])
                self._client.delete_all([self._mark])
                return
            self._client.delete_all(left)
        raise StorageError(
            f"cannot delete {self._client.name(left[0])}", OSError("the store says that it has, and lists it still")
        )


def sweep(url: ObjectUrl, login: Login, client: Client) -> list[str]:
    """Delete what killed processes of this host and user left under the prefix; returns the names of their runs."""
    home = url.key(_owner())
    uploads = _uploads(login, url, f"{home}/")  # before the objects: whoever began one by now has signed before
    runs: dict[str, list[str]] = {}
    ages: dict[str, float] = {}
    for name, (_, changed) in client.listing(home).items():
        if match := _RUN.fullmatch(name):
            runs.setdefault(match[1], []).append(f"{home}/{name}")
            ages[match[1]] = max(ages.get(match[1], changed), changed)
    gone = [run for run, keys in runs.items() if _given_up(client, f"{home}/{run}.owner", keys, time.time() - ages[run])]
    living = set(runs) - set(gone)
    lost = [u for u in uploads if (m := _RUN.fullmatch(u["Key"].removeprefix(f"{home}/"))) and m[1] not in living]
    _abort(login, url, lost)
    for run in gone:
        mark = f"{home}/{run}.owner"
        client.delete_all([*(key for key in runs[run] if key != mark), _at_work(url, run)])
        client.delete_all([mark])  # last: without it nobody would know whose the rest is
    return gone


def _given_up(client: Client, mark: str, keys: list[str], age_s: float) -> bool:
    """Whether the owner is gone: its process is, as far as this host can tell; or all of it is a day old."""
    if age_s > FOREIGN_AGE_S:
        return True
    signed = None
    if mark in keys:
        with contextlib.suppress(Wrong):  # another sweeper was faster
            signed = _MARK.fullmatch(bytes(client.get(mark)).decode("ascii", "replace"))
    if signed is None:
        return False
    boot, space, pid, start = signed.groups()
    if boot == _NO_BOOT or (boot, space) != _here():
        return False
    process = processes.read(int(pid))
    return process is None or process.start != int(start) or process.state == "Z"


def _at_work(url: ObjectUrl, run: str) -> str:
    """The key of a case's mark."""
    return url.key(f"{AT_WORK}/{run}")


def _owner() -> str:
    who = f"{os.uname().nodename}\0{os.geteuid()}"
    return f"clustergauge-{hashlib.sha256(who.encode()).hexdigest()[:16]}"


def _sign() -> str:
    process = processes.read(os.getpid())
    return f"{' '.join(_here())} {os.getpid()} {process.start if process else 0}\n"


def _here() -> tuple[str, str]:
    """This boot, and the space in which our process numbers mean something."""
    boot, space = _NO_BOOT, 0
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = Path("/proc/self/ns/pid").stat().st_ino
    return boot, str(space)


def _versions(login: Login, url: ObjectUrl) -> str:
    """Whether the bucket keeps what is deleted: ``kept``, ``not kept``, or ``unknown`` where the store does not say."""
    try:
        answer: Any = login.s3.get_bucket_versioning(Bucket=url.bucket)
    except Exception:  # noqa: BLE001 (not every store has the question; what matters is found by the next request)
        return "unknown"
    return "kept" if answer.get("Status") == "Enabled" else "not kept"


def _uploads(login: Login, url: ObjectUrl, prefix: str) -> list[dict[str, str]]:
    """Multipart uploads that are not finished (``Key``, ``UploadId``); none where the store won't tell, or not us."""
    try:
        pages: Any = login.s3.get_paginator("list_multipart_uploads").paginate(Bucket=url.bucket, Prefix=prefix)
        return [upload for page in pages for upload in page.get("Uploads", [])]
    except Exception:  # noqa: BLE001 (what matters of it is found by the next request)
        return []


def _abort(login: Login, url: ObjectUrl, uploads: list[dict[str, str]]) -> None:
    for upload in uploads:
        try:
            login.s3.abort_multipart_upload(Bucket=url.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        except Exception as error:  # noqa: BLE001
            raise failure(f"cannot abort an upload to s3://{url.bucket}/{upload['Key']}", error, login.reached) from None


def check(url: ObjectUrl) -> None:
    """Ask the store for a list, and look for what cannot be used.  Raises `StorageError`."""
    login = Login()
    Client(login, url).listing(url.key(_owner()))


def main(verb: str, text: str) -> int:
    """``python -m storage_io.object_space check|sweep URL``; why not is one line on standard error."""
    try:
        url = object_url.parse(text)
        if verb == "check":
            check(url)
        else:
            login = Login()
            sweep(url, login, Client(login, url))
    except (StorageError, UsageError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
