"""A run without the names of what it ran on: hosts, users, addresses, serials, UUIDs, buckets and keys, each one word everywhere.

Works on the documents, after they are judged, so that every format shows the same.  Known names are replaced wherever they stand
as a word of their own; of what no document names as such (a server in an error's text), only what has the form of an address, a
UUID, a mail-like ``user@``, a home folder or ``s3://bucket/key`` can be recognised.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from clustergauge import hosts, topology
from clustergauge.errors import UsageError
from clustergauge.loading import LoadedRun
from clustergauge.model import Data, Verdict

D = TypeVar("D", bound=Data)
_KEPT = {
    "schema", "status", "verdict", "kind", "state", "clock", "cache", "stop_reason", "device", "bound", "dtype", "collective",
    "direction", "started", "finished", "better", "world", "unit", "probe", "module", "run_id", "code", "versions", "arch",
    "peer_class", "digest", "pci",
}  # fmt: skip
"""Fields that name nothing of a site, and whose words have a meaning."""
_NAMED_KEYS = {"path", "health", "left_out", "settings", "telemetry"}
"""Dictionaries whose keys may hold a name."""
_TOKEN = re.compile(r"\w[\w.-]*")
_BREAK = re.compile(r"([._-]+)")
_LIST = re.compile(  # looking behind: a long word is gone through once
    r"(?<![\w.:])[0-9a-f]*:[0-9a-f:]*(?:\[\d[\d,-]*\][0-9a-f:]*)+(?:%\w[\w.-]*)?|(?<![\w.-])[\w.-]*(?:\[\d[\d,-]*\][\w.-]*)+",
    re.IGNORECASE,
)
_UUID = re.compile(r"\b(?:GPU-|MIG-)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9a-f]{0,4}:){2,}[0-9a-f:.]*(?:%\w[\w.-]*)?)(?![\w:])", re.IGNORECASE
)
_HARDWARE = re.compile(r"\b(?:[0-9a-f]{2}(?::[0-9a-f]{2}){5,19}|enx[0-9a-f]{12}|0x[0-9a-f]{16})\b", re.IGNORECASE)
_USER = re.compile(r"(?:/home/|/Users/)([\w.-]+)|(?<![\w.-])([\w.-]+)@(?=\w)")
_SERIAL = re.compile(r"\bserial(?:[ _]?(?:number|no))?\"?[ :=]+\"?([\w-]*\d[\w-]*)", re.IGNORECASE)
_SERVER = re.compile(r"(?<![\w/.-])([A-Za-z][\w.-]+):/(?!/)")
_FIRST_MARK, _MARKS = 0xF0000, 0xFFFE
_MARK = re.compile("[\U000f0000-\U000ffffd]")
"""Characters for private use, which are in no word."""
_STORE = re.compile(r"s3://[\w.-]+(?:/[\w.=+-]+)*", re.ASCII)
_DATA = re.compile(r"data-\d+", re.ASCII)
"""The part of a key that names nothing of a site."""
_LONGEST = 12
"""Parts of one name, between its dots and dashes."""


class Names:
    """What stands for each name of a run: ``node-1``, ``user-1``, ``address-1``, ``serial-1``, ``machine-1``,
    ``s3://bucket-1/key-1``."""

    def __init__(self, loaded: LoadedRun, verdicts: Sequence[Verdict]) -> None:
        self.known: dict[str, str] = {}
        self.count: dict[str, int] = {}
        self.stored: dict[tuple[str, str], str] = {}
        machines = [loaded.machines[name] for name in sorted(loaded.machines)]
        for name in _hosts(loaded):
            self._host(name)
        for machine in machines:
            self._host(machine.calls_itself, self.known.get(machine.host.lower(), ""))
        for machine in machines:
            self._put(machine.machine_id, "machine")
            for gpu in machine.gpus:
                self._put(gpu.uuid, "serial")
        if leaves := topology.of_run(loaded.run):
            for leaf in leaves.leaf:
                for name, kind in ((leaf.name, "leaf"), (leaf.rack, "rack")):
                    if _tells(name):
                        self._put(name, kind)
        documents = [loaded.run, *machines, *loaded.records, *verdicts]
        for text in (str(loaded.path), *(msgspec.json.encode(d).decode() for d in documents)):
            for match in _USER.finditer(text):
                self._put(match[1] or match[2].lstrip("-.0123456789"), "user")
            for match in _SERIAL.finditer(text):
                self._put(match[1], "serial")
            for match in _SERVER.finditer(text):
                self._host(match[1])

    def _host(self, name: str, word: str = "") -> None:
        """``word``: that stands for the same host under another name; empty where there is none."""
        if name and name.lower() != "localhost":
            short = name.partition(".")[0]
            word = self.known.get(short.lower()) or word or self._put(name, "node")
            if not _is_address(name):
                self.known.setdefault(short.lower(), word)
            self.known.setdefault(name.lower(), word)

    def _put(self, name: str, kind: str) -> str:
        if name and name.lower() not in self.known:
            self.count[kind] = self.count.get(kind, 0) + 1
            self.known[name.lower()] = f"{kind}-{self.count[kind]}"
        return self.known.get(name.lower(), "")

    def run(self, loaded: LoadedRun) -> LoadedRun:
        """The same run with its names replaced."""
        machines = [self.document(loaded.machines[name]) for name in sorted(loaded.machines)]
        return LoadedRun(
            self.document(loaded.run),
            {machine.machine_id: machine for machine in machines},
            [self.document(record) for record in loaded.records],
            Path(self.text(str(loaded.path))),
            [self.text(note) for note in loaded.notes],
            loaded.catalogue,
        )

    def document(self, document: D) -> D:
        """The document with all its texts replaced."""
        return msgspec.convert(self._value(msgspec.to_builtins(document), ""), type(document))

    def _value(self, value: Any, field: str) -> Any:
        if field in _KEPT:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            items = cast("list[Any]", value)
            return items if items and isinstance(items[0], float) else [self._value(item, "") for item in items]
        if isinstance(value, dict):
            named = field in _NAMED_KEYS
            items_ = cast("dict[str, Any]", value).items()
            return {self.text(key) if named else key: self._value(inner, "" if named else key) for key, inner in items_}
        return value

    def text(self, text: str) -> str:
        """The text with every name replaced."""
        done: list[str] = []

        def kept(words: str, before: str) -> str:
            """One character in place of the words: a host may be called like what stands for another (``node-5``)."""
            if words == before or len(done) >= _MARKS:
                return words
            done.append(words)
            return chr(_FIRST_MARK + len(done) - 1)

        text = _MARK.sub("\N{REPLACEMENT CHARACTER}", text)
        text = _STORE.sub(lambda m: kept(self._url(m[0]), m[0]), text)
        text = _LIST.sub(lambda m: kept(self._list(m[0]), m[0]), text)
        text = _UUID.sub(lambda m: kept(self._put(m[0], "serial"), m[0]), text)
        text = _HARDWARE.sub(lambda m: kept(self._put(m[0], "address"), m[0]), text)
        text = _ADDRESS.sub(lambda m: kept(self._address(m[0]), m[0]), text)
        text = _TOKEN.sub(lambda m: self._token(m[0]), text)
        return _MARK.sub(lambda m: done[ord(m[0]) - _FIRST_MARK], text)

    def _url(self, text: str) -> str:
        """An object's address.  Its parts may be common words: they stand for a name here and nowhere else."""
        whole = text.rstrip(".")
        bucket, *parts = whole.removeprefix("s3://").split("/")
        words = [self._stored(bucket, "bucket"), *(p if _DATA.fullmatch(p) else self._stored(p, "key") for p in parts)]
        return f"s3://{'/'.join(words)}{text[len(whole) :]}"

    def _stored(self, name: str, kind: str) -> str:
        number = sum(known == kind for known, _ in self.stored) + 1
        return self.stored.setdefault((kind, name), f"{kind}-{number}")

    def _list(self, text: str) -> str:
        try:
            names = hosts.expand(text)
        except UsageError:
            return text
        return hosts.compress(self._token(name) for name in names)

    def _address(self, text: str) -> str:
        bare = text if _is_address(text) else text.rstrip(":.")  # of a sentence: ``fd00::1: refused``
        return self._put(bare, "address") + text[len(bare) :] if _is_address(bare) else text

    def _token(self, token: str) -> str:
        """The longest known names between the dots, dashes and underscores of a word."""
        if whole := self.known.get(token.lower()):
            return whole
        parts, found, at = _BREAK.split(token), list[str](), 0
        while at < len(parts):
            for end in range(min(len(parts), at + 2 * _LONGEST), at, -1):
                if word := self.known.get("".join(parts[at:end]).lower()):
                    found.append(word)
                    at = end
                    break
            else:
                found.append(parts[at])
                at += 1
        return "".join(found)


def _hosts(loaded: LoadedRun) -> Iterator[str]:
    yield from sorted(machine.host for machine in loaded.machines.values())
    for planned in loaded.run.planned:
        if planned.hosts:
            yield from (name.rpartition("@")[2] for name in hosts.expand(planned.hosts))
    yield from loaded.run.left_out
    for record in loaded.records:
        yield from (place.host for place in record.placement)


def _tells(name: str) -> bool:
    """Whether a name of a switch or a rack is one word that is no plain number and no plain word either (``3``, ``left``)."""
    return _TOKEN.fullmatch(name) is not None and any(map(str.isdigit, name)) and any(map(str.isalpha, name))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return len(text) > 2
