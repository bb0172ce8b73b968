"""What a sample of object-store requests is: which, on which objects, and how it is known that they did it.

An operation has the steps of a case: ``load`` makes a sample of so many requests ready (untimed), ``run`` is the timed region,
``verify`` looks at what came of it.  Object ``n`` holds file ``n`` of the `Pattern`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clustergauge.budget import seconds
from clustergauge.clocks import read_ns
from clustergauge.probe import Context, Skip, Wrong
from storage_io.lanes import Lanes
from storage_io.layout import patience
from storage_io.object_client import PART_BYTES, Client
from storage_io.object_space import ObjectSpace
from storage_io.pattern import Pattern, aligned

if TYPE_CHECKING:
    from storage_io.pattern import Numbers

SPOT_CHECKS = 16
"""Objects (parts of a large one) written in a sample that are read back after it."""
BATCH_BYTES = 64 << 20
"""Memory for what is read back at once."""
LEAST_OBJECTS = 64
"""Objects to be read, where the store is too slow for as many as there should be."""
PIECE = 64
"""Objects after which it is looked whether it takes too long."""
HELPERS = 16
"""Requests at once where nothing is timed."""


class Op:
    """``most``: requests that a sample may hold.  ``names``: names that each lists, 1 for other requests.  ``latencies``:
    nanoseconds of each request of the last sample."""

    names = 1

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int, most: int) -> None:
        import numpy as np

        self.most = most
        self.latencies: Numbers = np.zeros(most, np.int64)
        self._ctx = ctx
        self._client = client
        self._space = space
        self._size = size
        self._pattern = Pattern()
        self._choose = np.random.default_rng(ctx.seed)
        self._chosen: list[int] = []
        self._todo: list[tuple[Any, ...]] = []
        self._lanes = Lanes([self._timed] * at_once)
        self._helpers = Lanes([lambda work, *arguments: work(*arguments)] * HELPERS)

    def populate(self) -> None:
        """Put the objects that will be asked for."""

    def load(self, count: int) -> None:
        """Make ``count`` requests ready."""
        raise NotImplementedError

    def verify(self, *, whole: bool) -> None:
        """Raise `Wrong` unless the sample did what it should.  ``whole``: all of it, where some must do between samples."""
        raise NotImplementedError

    def run(self) -> None:
        """The timed region."""
        self._lanes.run(self._todo)

    def close(self) -> None:
        """End the threads."""
        self._lanes.close()
        self._helpers.close()

    def _timed(self, place: int, *arguments: Any) -> None:
        began = read_ns()
        self._request(place, *arguments)
        self.latencies[place] = read_ns() - began

    def _request(self, place: int, *arguments: Any) -> None:
        raise NotImplementedError

    # -- without a clock, many at once

    def _populate(self, count: int, least: int) -> int:
        """Put objects 1 to ``count``, or as many as there is time for; how many.  Raises `Skip` if these are below ``least``."""
        spent, limit = 0.0, patience(self._ctx)
        for first in range(1, count + 1, PIECE):
            numbers = list(range(first, min(first + PIECE, count + 1)))
            spent += seconds(lambda numbers=numbers: self._put_all(numbers))
            done = numbers[-1]
            if done < least and spent * least / done > limit:
                raise Skip(
                    f"writing {least} objects to begin with would take {spent * least / done:.0f} s (at most {limit:.0f} s)"
                )
            if done >= least and spent > limit / 2:
                break
        self._ctx.set("objects", done)
        return done

    def _put_all(self, numbers: list[int]) -> None:
        """Put whole objects whose content is made on the way, so that it takes little memory."""

        def put(number: int) -> None:
            content = aligned(self._size)
            self._pattern.fill(content, number, 0)
            self._client.put(self._space.key(number), content.data.cast("B"))

        self._helpers.run([(put, number) for number in numbers])

    def _delete_all(self, numbers: list[int]) -> None:
        self._client.delete_all([self._space.key(number) for number in numbers])

    def _compare_list(self, expected: dict[int, int], found: dict[str, int] | None = None) -> None:
        """Raise `Wrong` unless the folder holds these objects (number: bytes) and no others."""
        found = self._client.sizes(self._space.folder) if found is None else found
        wanted = {f"data-{number}": size for number, size in expected.items()}
        if found == wanted:
            return
        lost, odd = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        where = self._client.name(self._space.folder)
        if lost:
            raise Wrong(f"{where}: {len(lost)} of {len(wanted)} objects that were written are not listed: {', '.join(lost[:3])}")
        if odd:
            raise Wrong(f"{where}: {len(odd)} objects are listed that must not be there: {', '.join(odd[:3])}")
        name = next(name for name, size in wanted.items() if found[name] != size)
        raise Wrong(f"{where}/{name} has {found[name]} bytes, expected {wanted[name]}")

    def _verify(self, got: Any, number: int, sample: int, offset: int, length: int) -> None:
        """Raise `Wrong` unless a buffer is what must be at that byte of the object."""
        import numpy as np

        name = self._client.name(self._space.key(number))
        if got is None or len(got) != length:
            came = "nothing" if got is None else f"{len(got)} bytes"
            raise Wrong(f"{name}: asked for {length} bytes from byte {offset} on, {came} came")
        self._pattern.verify(np.frombuffer(got, np.uint64), name, number, sample, offset)

    def _read_back(self, wanted: list[tuple[int, int, int]], sample: int) -> None:
        """Read objects or parts of them (number, first byte, bytes) and verify each."""
        batch = max(1, BATCH_BYTES // max(length for *_, length in wanted))
        for first in range(0, len(wanted), batch):
            some = wanted[first : first + batch]
            got: list[Any] = [None] * len(some)

            def read(place: int, number: int, start: int, length: int, got: list[Any] = got) -> None:
                key = self._space.key(number)
                whole = length == self._size
                got[place] = self._client.get(key) if whole else self._client.get_range(key, start, length)

            self._helpers.run([(read, place, *what) for place, what in enumerate(some)])
            for content, (number, start, length) in zip(got, some, strict=True):
                self._verify(content, number, sample, start, length)

    def _some(self, count: int) -> list[int]:
        return sorted(int(n) for n in self._choose.choice(count, min(SPOT_CHECKS, count), replace=False))


class Put(Op):
    """Objects under new names, each with content of its own; those of the sample before are gone by then."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int, most: int) -> None:
        super().__init__(ctx, space, client, at_once, size, most)
        self._content = aligned(size * most)
        self._sample = 0

    def load(self, count: int) -> None:
        """See `Op`."""
        self._delete_all(self._chosen)
        self._sample += 1
        first = self._chosen[-1] + 1 if self._chosen else 1
        self._chosen = list(range(first, first + count))
        words = self._size // 8
        self._todo = []
        for place, number in enumerate(self._chosen):
            content = self._content[place * words : (place + 1) * words]
            self._pattern.fill(content, number, self._sample)
            self._todo.append((place, self._space.key(number), content.data.cast("B")))

    def _request(self, place: int, *arguments: Any) -> None:
        del place
        self._client.put(*arguments)

    def verify(self, *, whole: bool) -> None:
        """All are listed with their sizes; some or all are read back."""
        self._compare_list(dict.fromkeys(self._chosen, self._size))
        numbers = self._chosen if whole else [self._chosen[place] for place in self._some(len(self._chosen))]
        self._read_back([(number, 0, self._size) for number in numbers], self._sample)


class Get(Op):
    """Objects chosen anew for every sample; all of all are verified."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int, most: int) -> None:
        super().__init__(ctx, space, client, at_once, size, most)
        self._got: list[Any] = []

    def populate(self) -> None:
        """See `Op`."""
        self.most = self._populate(self.most, min(self.most, LEAST_OBJECTS))

    def load(self, count: int) -> None:
        """See `Op`."""
        self._chosen = [int(n) + 1 for n in self._choose.permutation(self.most)[:count]]
        self._got = [None] * count
        self._todo = [(place, self._space.key(number)) for place, number in enumerate(self._chosen)]

    def _request(self, place: int, *arguments: Any) -> None:
        self._got[place] = self._client.get(*arguments)

    def verify(self, *, whole: bool) -> None:
        """See `Op`."""
        del whole
        for got, number in zip(self._got, self._chosen, strict=True):
            self._verify(got, number, 0, 0, self._size)


class Range(Op):
    """Parts of one object of ``size × most`` bytes, in random order, none twice in a sample; all of all are verified."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int, most: int) -> None:
        super().__init__(ctx, space, client, at_once, size, most)
        self._got: list[Any] = []

    def populate(self) -> None:
        """See `Op`."""
        content = aligned(self._size * self.most)
        self._pattern.fill(content, 1, 0)
        self._client.put(self._space.key(1), content.data.cast("B"), HELPERS if len(content) * 8 > PART_BYTES else 0)

    def load(self, count: int) -> None:
        """See `Op`."""
        self._chosen = [int(n) for n in self._choose.permutation(self.most)[:count]]
        self._got = [None] * count
        key = self._space.key(1)
        self._todo = [(place, key, number * self._size, self._size) for place, number in enumerate(self._chosen)]

    def _request(self, place: int, *arguments: Any) -> None:
        self._got[place] = self._client.get_range(*arguments)

    def verify(self, *, whole: bool) -> None:
        """See `Op`."""
        del whole
        for got, number in zip(self._got, self._chosen, strict=True):
            self._verify(got, 1, 0, number * self._size, self._size)


class List(Op):
    """Lists of all objects of the folder, ``names`` of them; each is compared with what must be there."""

    def __init__(self, ctx: Context, space: ObjectSpace, client: Client, at_once: int, size: int, names: int) -> None:
        super().__init__(ctx, space, client, at_once, size, max(at_once, 64))
        self.names = names
        self._got: list[dict[str, int] | None] = []

    def populate(self) -> None:
        """See `Op`."""
        self._populate(self.names, self.names)

    def load(self, count: int) -> None:
        """See `Op`."""
        self._got = [None] * count
        self._todo = [(place,) for place in range(count)]

    def _request(self, place: int, *arguments: Any) -> None:
        del arguments
        self._got[place] = self._client.sizes(self._space.folder)

    def verify(self, *, whole: bool) -> None:
        """See `Op`."""
        del whole
        expected = dict.fromkeys(range(1, self.names + 1), self._size)
        for got in self._got:
            self._compare_list(expected, got or {})


class Delete(Op):
    """Objects deleted by a request each; then none of them is listed any more."""

    def load(self, count: int) -> None:
        """See `Op`."""
        self._delete_all(self._chosen)
        first = self._chosen[-1] + 1 if self._chosen else 1
        self._chosen = list(range(first, first + count))
        self._put_all(self._chosen)
        self._compare_list(dict.fromkeys(self._chosen, self._size))
        self._todo = [(place, self._space.key(number)) for place, number in enumerate(self._chosen)]

    def _request(self, place: int, *arguments: Any) -> None:
        del place
        self._client.delete(*arguments)

    def verify(self, *, whole: bool) -> None:
        """See `Op`."""
        del whole
        self._compare_list({})
