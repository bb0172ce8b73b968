"""The control channel: bounded, authenticated, and undisturbed by clients that are silent, broken or foreign."""

from __future__ import annotations

import queue
import resource
import socket
import struct
import threading
import time

import msgspec
import pytest
from hypothesis import given, strategies as st

from clustergauge.control import MAX_FRAME, Channel, ChannelError, Ears, Heard, Listener, connect

KEY = b"k" * 32


@pytest.fixture
def server(tmp_path):
    """A listener whose clients are heard; yields (address, events)."""
    events: queue.Queue[Heard[object]] = queue.Queue()
    ears = Ears(msgspec.json.Decoder(), events)
    welcomed: list[Channel] = []

    def welcome(channel: Channel) -> None:
        welcomed.append(channel)
        ears.add(channel)

    listener = Listener(str(tmp_path / "s"), KEY, welcome, timeout_s=2.0)
    yield listener.address, events
    listener.close()
    ears.close()
    for channel in welcomed:
        channel.close()


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left, KEY, b"a", b"b"), Channel(right, KEY, b"b", b"a")


@given(st.lists(st.binary(max_size=200), max_size=8), st.integers(1, 40))
def test_frames_survive_any_cutting(bodies, step):
    left, right = pair()
    for body in bodies:
        left.send(body.hex())
    left.sock.shutdown(socket.SHUT_WR)
    data = b""
    while piece := right.sock.recv(65536):
        data += piece
    heard = [b for i in range(0, len(data), step) for b in right.feed(data[i : i + step])]
    assert [msgspec.json.decode(b) for b in heard] == [b.hex() for b in bodies]
    left.close()
    right.close()


@given(st.data())
def test_any_flipped_bit_is_refused(data):
    left, right = pair()
    left.send({"value": 1.5})
    raw = bytearray(right.sock.recv(65536))
    position = data.draw(st.integers(4, len(raw) - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ChannelError, match="wrong signature"):
        right.feed(bytes(raw))
    left.close()
    right.close()


def test_replayed_and_reflected_frames_are_refused():
    left, right = pair()
    left.send(1)
    raw = right.sock.recv(65536)
    assert right.feed(raw) == [b"1"]
    with pytest.raises(ChannelError, match="wrong signature"):
        right.feed(raw)
    with pytest.raises(ChannelError, match="wrong signature"):
        left.feed(raw)
    left.close()
    right.close()


def test_a_huge_length_is_refused_before_memory_is_taken():
    left, right = pair()
    with pytest.raises(ChannelError, match="over the limit"):
        right.feed(struct.pack("!I", MAX_FRAME + 1))
    left.close()
    right.close()


def test_wrong_key_gets_nowhere(server):
    address, events = server
    with pytest.raises(ChannelError):
        connect(address, b"x" * 32)
    with pytest.raises(queue.Empty):
        events.get(timeout=0.1)


def test_a_server_without_the_key_is_refused(tmp_path):
    listener = Listener(str(tmp_path / "s"), b"y" * 32, lambda channel: None)
    with pytest.raises(ChannelError):
        connect(listener.address, KEY)
    listener.close()


@pytest.mark.parametrize("body", [b"{not json", b'"\xff"', b"[" * 100_000, b"1e999999999", b"", b"\0"])
def test_a_body_that_is_no_message_ends_only_its_own_channel(server, body):
    address, events = server
    bad, good = connect(address, KEY), connect(address, KEY)
    bad.send("fine")
    assert events.get(timeout=5).message == "fine"
    bad.sock.sendall(struct.pack("!I", len(body)) + bad._tag(b"client", 1, body) + body)
    heard = events.get(timeout=5)
    assert heard.message is None
    assert heard.reason.startswith("no message: ")
    good.send("still here")
    assert events.get(timeout=5).message == "still here"
    bad.close()
    good.close()


def test_the_end_of_a_client_is_heard(server):
    address, events = server
    client = connect(address, KEY)
    client.send(1)
    assert events.get(timeout=5).message == 1
    client.close()
    assert events.get(timeout=5).message is None


def test_1024_clients_are_welcomed_while_others_are_silent_or_talk_nonsense(server):
    address, events = server
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # both ends of every connection are in this process
    silent = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for sock in silent:
        sock.connect(address)
    silent[1].sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    began = time.monotonic()
    channels: list[Channel] = []

    def clients(first: int) -> None:
        for number in range(first, first + 128):
            channel = connect(address, KEY, timeout_s=30)
            channel.send(number)
            channels.append(channel)

    threads = [threading.Thread(target=clients, args=(i * 128,)) for i in range(8)]
    for thread in threads:
        thread.start()
    heard = {events.get(timeout=30).message for _ in range(1024)}
    for thread in threads:
        thread.join()
    assert heard == set(range(1024))
    assert time.monotonic() - began < 30  # the bound that a start of 1024 nodes must keep
    for channel in channels:
        channel.close()
    for sock in silent:
        sock.close()


def test_a_client_that_trickles_bytes_is_dropped_at_the_deadline(server):
    address, _ = server
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    sock.recv(100)
    with pytest.raises(OSError):  # noqa: PT012
        for _ in range(40):
            sock.sendall(b"x")
            time.sleep(0.1)
    sock.close()


def test_sending_to_one_that_reads_nothing_fails_at_the_limit():
    left, right = pair()
    left.limit_sending(0.1)
    with pytest.raises(ChannelError, match="takes no messages"):
        left.send("x" * (16 << 20))
    with pytest.raises(ChannelError):
        left.send("a second frame must not follow half a frame")
    left.close()
    right.close()
