"""The channel between supervisor, node agents and workers: authenticated, bounded frames of msgspec JSON.

A frame is its length (4 bytes), an HMAC-SHA256 over direction, sequence number and body, and the body.  Both sides prove
that they hold the key before a single message is read, each in a thread of its own with a deadline, so that a silent or
broken client delays nobody.  After that one thread reads all channels and puts what it hears on a queue.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import secrets
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from clustergauge import addresses
from clustergauge.addresses import Address

MAX_FRAME = 64 << 20
"""Bytes; a longer frame is refused before anything is allocated for it."""
HANDSHAKE_S = 15.0
"""Seconds a client has to prove that it holds the key."""

_MAGIC = b"clustergauge/1\n"
_NONCE = 32
_TAG = 32
_HEAD = struct.Struct("!I")

T = TypeVar("T")


class ChannelError(Exception):
    """The other side is gone, silent, broken or does not hold the key."""


class Channel:
    """An authenticated connection that sends and receives frames.  Sending is safe from several threads."""

    def __init__(self, sock: socket.socket, key: bytes, ours: bytes, theirs: bytes) -> None:
        self.sock = sock
        self._key = key
        self._ours = ours
        self._theirs = theirs
        self._patience_s: float | None = None
        self._sent = 0
        self._heard = 0
        self._lock = threading.Lock()
        self._buffer = bytearray()

    def _tag(self, side: bytes, number: int, body: bytes | memoryview) -> bytes:
        mac = hmac.new(self._key, side + number.to_bytes(8, "big"), "sha256")
        mac.update(body)
        return mac.digest()

    def send(self, message: object) -> None:
        """Send one message.  Raises `ChannelError` if the other side is gone or the message is too large."""
        body = msgspec.json.encode(message)
        if len(body) > MAX_FRAME:
            raise ChannelError(f"message of {len(body)} bytes is over the limit of {MAX_FRAME}")
        with self._lock:
            try:
                self._send_all(_HEAD.pack(len(body)) + self._tag(self._ours, self._sent, body) + body)
            except (OSError, ValueError) as error:
                raise ChannelError(f"connection lost while sending: {error}") from None
            self._sent += 1

    def _send_all(self, frame: bytes) -> None:
        if self._patience_s is None:
            self.sock.sendall(frame)
            return
        rest, writable = memoryview(frame), select.poll()
        writable.register(self.sock, select.POLLOUT)
        while rest:
            try:
                rest = rest[self.sock.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if not writable.poll(self._patience_s * 1e3):
                    self.hang_up()
                    raise ChannelError("the other side takes no messages") from None

    def limit_sending(self, seconds: float) -> None:
        """From now on, `send` fails once the other side has taken nothing for so long; a message cut short ends the channel."""
        self._patience_s = seconds

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes, return the bodies now complete.  Raises `ChannelError` for a bad length or tag."""
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise ChannelError(f"frame of {length} bytes is over the limit of {MAX_FRAME}")
            end = _HEAD.size + _TAG + length
            if len(self._buffer) < end:
                break
            tag = bytes(self._buffer[_HEAD.size : _HEAD.size + _TAG])
            body = bytes(self._buffer[_HEAD.size + _TAG : end])
            if not hmac.compare_digest(tag, self._tag(self._theirs, self._heard, body)):
                raise ChannelError("frame with a wrong signature")
            self._heard += 1
            del self._buffer[:end]
            bodies.append(body)
        return bodies

    def receive(self) -> list[bytes]:
        """Read once (blocking if nothing is there) and return the frames now complete, perhaps none.

        Raises `ChannelError` at the end of the stream, for a lost connection, and as `feed` does.
        """
        try:
            data = self.sock.recv(1 << 18)
        except OSError as error:
            raise ChannelError(f"connection lost: {error}") from None
        if not data:
            raise ChannelError("connection closed by the other side")
        return self.feed(data)

    def hang_up(self) -> None:
        """End the conversation; whoever reads the channel (`Ears`) hears the end and closes it.  Safe to call twice."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and release the socket.  Not while `Ears` read it: they would miss the end."""
        self.hang_up()
        self.sock.close()


def _exactly(sock: socket.socket, count: int, deadline: float) -> bytes:
    data = b""
    while len(data) < count:
        sock.settimeout(max(1e-3, deadline - time.monotonic()))  # a client that trickles bytes gets no longer than a silent one
        piece = sock.recv(count - len(data))
        if not piece:
            raise ChannelError("connection closed during the handshake")
        data += piece
    return data


def _derive(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"\0".join(parts), "sha256")


def _welcome(sock: socket.socket, key: bytes, deadline: float) -> Channel:
    """The listening side of the handshake."""
    nonce = secrets.token_bytes(_NONCE)
    sock.sendall(_MAGIC + nonce)
    answer = _exactly(sock, _NONCE + _TAG, deadline)
    theirs, proof = answer[:_NONCE], answer[_NONCE:]
    if not hmac.compare_digest(proof, _derive(key, b"client", nonce, theirs)):
        raise ChannelError("client without the key")
    sock.sendall(_derive(key, b"server", nonce, theirs))
    return Channel(sock, _derive(key, b"session", nonce, theirs), b"server", b"client")


def connect(address: Address, key: bytes, timeout_s: float = HANDSHAKE_S) -> Channel:
    """Connect and prove to each other that both hold the key.  Raises `ChannelError`."""
    try:
        sock = addresses.called(address, timeout_s)
    except OSError as error:
        raise ChannelError(f"cannot connect to {addresses.written(address)}: {error}") from None
    deadline = time.monotonic() + timeout_s
    try:
        addresses.watch_over(sock)
        greeting = _exactly(sock, len(_MAGIC) + _NONCE, deadline)
        if not greeting.startswith(_MAGIC):
            raise ChannelError("it does not speak this protocol")
        theirs, nonce = greeting[len(_MAGIC) :], secrets.token_bytes(_NONCE)
        sock.sendall(nonce + _derive(key, b"client", theirs, nonce))
        if not hmac.compare_digest(_exactly(sock, _TAG, deadline), _derive(key, b"server", theirs, nonce)):
            raise ChannelError("it does not hold the key")
        sock.settimeout(None)
    except (OSError, ChannelError) as error:
        sock.close()
        raise ChannelError(f"cannot connect to {addresses.written(address)}: {error}") from None
    return Channel(sock, _derive(key, b"session", theirs, nonce), b"client", b"server")


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """The message of a frame.  Raises `ChannelError` for whatever is none, UTF-8 that is broken and endless nesting included."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ChannelError(f"no message: {error}") from None


@dataclass(frozen=True)
class Heard(Generic[T]):
    """One event of the reader: a message, or (``message`` is ``None``) the end of a channel and why."""

    channel: Channel
    message: T | None
    reason: str = ""


class Ears(Generic[T]):
    """One thread that reads any number of channels and puts `Heard` on ``queue``.

    A body that is no message of the ``decoder`` ends that channel alone.
    """

    def __init__(self, decoder: msgspec.json.Decoder[T], events: queue.Queue[Any]) -> None:
        self.queue = events
        self._decoder = decoder
        self._selector = selectors.DefaultSelector()
        self._wake_r, self._wake_w = socket.socketpair()
        self._new: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ears", daemon=True)
        self._thread.start()

    def add(self, channel: Channel) -> None:
        """Listen to this channel from now on."""
        self._new.put(channel)
        with contextlib.suppress(OSError):
            self._wake_w.send(b"x")

    def close(self) -> None:
        """Stop reading; channels stay open."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake_w.send(b"x")
        self._thread.join(5)
        self._wake_w.close()

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._wake_r.recv(4096)
                    while not self._new.empty():
                        channel = self._new.get()
                        with contextlib.suppress(ValueError, KeyError, OSError):
                            self._selector.register(channel.sock, selectors.EVENT_READ, channel)
                else:
                    self._read(key.data)
        self._selector.close()
        self._wake_r.close()

    def _read(self, channel: Channel) -> None:
        try:
            for body in channel.receive():
                self.queue.put(Heard(channel, decode(body, self._decoder)))
        except ChannelError as error:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(channel.sock)
            channel.close()
            self.queue.put(Heard(channel, None, str(error)))


class Listener:
    """Accepts clients; each that proves to hold the key within ``timeout_s`` is handed to ``welcome`` (from its own thread)."""

    def __init__(self, address: Address, key: bytes, welcome: Callable[[Channel], None], timeout_s: float = HANDSHAKE_S) -> None:
        self._key = key
        self._welcome = welcome
        self._timeout_s = timeout_s
        self._sock = addresses.listening(address)
        own = self._sock.getsockname()
        self.address: Address = own if isinstance(own, str) else (own[0], own[1])
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        """Accept no more; channels already handed out stay."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            threading.Thread(target=self._shake, args=(sock,), name="handshake", daemon=True).start()

    def _shake(self, sock: socket.socket) -> None:
        try:
            sock.settimeout(self._timeout_s)
            addresses.watch_over(sock)
            channel = _welcome(sock, self._key, time.monotonic() + self._timeout_s)
            sock.settimeout(None)
        except (OSError, ChannelError):
            sock.close()
            return
        self._welcome(channel)
