"""Samples of one large object: by one request, or in parts of 8 MiB, as many in flight as asked."""

from __future__ import annotations

from typing import Any

from clustergauge.probe import Context
from storage_io.object_client import PART_BYTES, Client
from storage_io.object_ops import HELPERS, Op
from storage_io.object_space import ObjectSpace
from storage_io.pattern import aligned

SPOT_BYTES = 1 << 20


class PutLarge(Op):
    """Under a new name in every sample; the one before is gone by then."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int) -> None:
        super().__init__(ctx, space, client, 1, size, 1)
        self._parts_at_once = at_once if at_once > 1 else 0
        self._content = aligned(size)

    def load(self, count: int) -> None:
        """See `Op`."""
        del count
        self._delete_all(self._chosen)
        self._chosen = [self._chosen[0] + 1 if self._chosen else 1]
        number = self._chosen[0]
        self._pattern.fill(self._content, number, number)
        self._todo = [(0, self._space.key(number), self._content.data.cast("B"), self._parts_at_once)]

    def _request(self, place: int, *arguments: Any) -> None:
        del place
        self._client.put(*arguments)

    def verify(self, *, whole: bool) -> None:
        """Its size, and some parts of it or all."""
        number = self._chosen[0]
        self._compare_list({number: self._size})
        pieces = -(-self._size // SPOT_BYTES)
        starts = [piece * SPOT_BYTES for piece in (range(pieces) if whole else self._some(pieces))]
        self._read_back([(number, start, min(SPOT_BYTES, self._size - start)) for start in starts], number)


class GetLarge(Op):
    """All of it is verified after every sample."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int) -> None:
        step = size if at_once == 1 else PART_BYTES
        self._parts = [(start, min(step, size - start)) for start in range(0, size, step)]
        super().__init__(ctx, space, client, at_once, size, len(self._parts))
        self._got: list[Any] = []

    def populate(self) -> None:
        """See `Op`."""
        content = aligned(self._size)
        self._pattern.fill(content, 1, 0)
        self._client.put(self._space.key(1), content.data.cast("B"), HELPERS)

    def load(self, count: int) -> None:
        """See `Op`."""
        del count
        key = self._space.key(1)
        self._got = [None] * len(self._parts)
        self._todo = [(place, key, *part) for place, part in enumerate(self._parts)]

    def _request(self, place: int, *arguments: Any) -> None:
        key, start, length = arguments
        whole = length == self._size
        self._got[place] = self._client.get(key) if whole else self._client.get_range(key, start, length)

    def verify(self, *, whole: bool) -> None:
        """See `Op`."""
        del whole
        for got, (start, length) in zip(self._got, self._parts, strict=True):
            self._verify(got, 1, 0, start, length)
