"""Requests to one object store: each tried again where the store asks for it, and every such try counted.

A try that fails, and the wait after it, are in the time of the request, as they are for every program that uses the store.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from clustergauge.clocks import read_ns
from clustergauge.object_url import ObjectUrl
from clustergauge.probe import Wrong
from storage_io.object_errors import cause_of, failure

if TYPE_CHECKING:
    from storage_io.object_login import Login

TRIES = 6
FIRST_WAIT_S = 0.1
"""Before the second try; twice as much before each one after, of which a random half to whole is waited."""
ANSWER_S, SLOWEST = 20.0, 10e6
"""A request may take so many seconds, and one more for so many bytes; once they are over there is no other try."""
PART_BYTES = 8 << 20
"""Of an object that goes in parts."""
_T = TypeVar("_T")


class Client:
    """``connections``: how many are kept open.  ``largest``: bytes of the largest request.  ``retries``: tries after a first
    one, so far."""

    def __init__(self, login: Login, url: ObjectUrl, connections: int = 1, largest: int = 0) -> None:
        answer_s = ANSWER_S + largest / SLOWEST
        self._login = login
        self._url = url
        self._patience_ns = int(answer_s * 1e9)
        self._store = login.store(url.bucket, connections, answer_s)
        self._single = login.store(url.bucket, connections, answer_s, disable_bulk_delete=True)
        self._lock = threading.Lock()
        self.retries = 0

    def put(self, key: str, view: memoryview, at_once: int = 0) -> None:
        """Write an object: by one request, or in parts, ``at_once`` in flight."""
        if at_once:
            self._try(
                "put", key, lambda: self._store.put(key, view, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=at_once)
            )
        else:
            self._try("put", key, lambda: self._store.put(key, view, use_multipart=False))

    def get(self, key: str) -> Any:
        """Read an object whole."""
        return self._try("get", key, lambda: self._store.get(key).bytes())

    def get_range(self, key: str, start: int, length: int) -> Any:
        """Read ``length`` bytes from byte ``start`` on."""
        return self._try("get", key, lambda: self._store.get_range(key, start=start, length=length))

    def delete(self, key: str) -> None:
        """Delete one object by one request."""
        self._try("delete", key, lambda: self._single.delete(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        """Delete objects, a thousand by a request where the store can do that."""
        if names := list(keys):
            self._try("delete", names[0], lambda: self._store.delete(names))

    def sizes(self, folder: str) -> dict[str, int]:
        """All objects whose keys begin with ``folder/``: bytes of each by the rest of its key."""
        return {name: size for name, (size, _) in self.listing(folder).items()}

    def listing(self, folder: str) -> dict[str, tuple[int, float]]:
        """The same with the time of the last change, in seconds since 1970 by the store's clock."""
        found = self._try("list", folder, lambda: self._store.list(folder or None, chunk_size=1000).collect())
        start = len(folder) + 1 if folder else 0
        return {entry["path"][start:]: (entry["size"], entry["last_modified"].timestamp()) for entry in found}

    def name(self, key: str) -> str:
        """An object as messages call it."""
        return f"s3://{self._url.bucket}/{key}"

    def _try(self, verb: str, key: str, request: Callable[[], _T]) -> _T:
        wait, began = FIRST_WAIT_S, read_ns()
        for tries in range(1, TRIES + 1):
            try:
                return request()
            except Exception as error:  # noqa: BLE001 (each library has its own)
                cause = cause_of(error)
                if cause.wrong:
                    raise Wrong(f"{self.name(key)}: {cause.text}") from None
                if not cause.passing or tries == TRIES or read_ns() - began > self._patience_ns:
                    tried = f" (tried {tries} times)" if tries > 1 else ""
                    raise failure(f"cannot {verb} {self.name(key)}{tried}", error, self._login.reached) from None
            with self._lock:
                self.retries += 1
            time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
            wait *= 2
        raise AssertionError
