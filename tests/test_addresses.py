"""Addresses of both families: listening, calling, which interface bears one, and a launcher's calls relayed past a network."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys

import pytest

from clustergauge import addresses, code
from clustergauge.control import ChannelError, Listener, connect

KEY = b"k" * 32


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_a_listener_is_called_by_either_family_and_watches_over_both(host):
    welcomed: queue.Queue = queue.Queue()
    listener = Listener(("", 0), KEY, welcomed.put)
    channel = connect((host, listener.address[1]), KEY)
    there = welcomed.get(timeout=10)
    for sock in (channel.sock, there.sock):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert [sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name, _ in addresses.KEEPALIVE] == [
            value for _, value in addresses.KEEPALIVE
        ]
    assert addresses.own_end(channel.sock) == host
    assert addresses.interface_of(addresses.own_end(channel.sock)) == "lo"
    channel.send(1)
    assert there.receive() == [b"1"]
    for end in (channel, there, listener):
        end.close()


@pytest.mark.parametrize(("host", "words"), [("127.0.0.1", "127.0.0.1:"), pytest.param("::1", r"\[::1\]:", marks=needs_ipv6)])
def test_whom_nobody_answers_is_named(host, words):
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ChannelError, match=rf"cannot connect to {words}{port}: .*refused"):
        connect((host, port), KEY, 2.0)
    with pytest.raises(ChannelError, match="cannot connect to /nowhere/s: "):
        connect("/nowhere/s", KEY, 2.0)


def test_a_link_local_address_is_looked_for_on_every_interface(monkeypatch):
    called = []

    def refuse(address, _timeout):
        called.append(address)
        raise ConnectionRefusedError("no")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "ib0")])
    for host in ("fe80::1", "fe80::1%x", "fd00::1"):
        with pytest.raises(ConnectionRefusedError):
            addresses.called((host, 7), 1.0)
    assert called == [("fe80::1%lo", 7), ("fe80::1%ib0", 7), ("fe80::1%x", 7), ("fd00::1", 7)]


def test_the_interface_of_an_ipv6_address_is_the_kernels_word(tmp_path):
    (tmp_path / "if_inet6").write_text(
        "00000000000000000000000000000001 01 80 10 80       lo\n"
        "fd780001000000000000000000000002 04 40 00 82     eth1\n"
        "fe8000000000000000fc00fffe000001 04 40 20 80     eth1\n"
        "torn\n"
    )
    for address, name in (("::1", "lo"), ("fd78:1::2", "eth1"), ("fe80::9%ib0", "ib0"), ("fd78:1::3", "")):
        assert addresses.interface_of(address, tmp_path / "if_inet6") == name
    assert addresses.interface_of("fd78:1::2", tmp_path / "absent") == ""


def test_this_machine_is_known_to_others_by_the_routes_to_them(monkeypatch):
    routes = {
        ("here", socket.AF_INET): "127.0.0.1",
        ("here", socket.AF_INET6): "::1",
        ("old", socket.AF_INET): "10.0.0.9",
        ("new", socket.AF_INET6): "fd00::9",
    }
    monkeypatch.setattr(addresses, "_source", lambda name, family: routes.get((name, family), ""))
    assert addresses.towards(["here", "root@old"]) == ["10.0.0.9"]
    assert addresses.towards(["here", "root@new"]) == ["fd00::9"]
    assert addresses.towards(["new", "old"]) == ["10.0.0.9", "fd00::9"]
    assert addresses.towards(["here"]) == ["127.0.0.1"]
    assert addresses.towards(["unknown"]) == []
    assert addresses.towards(["here", "unknown"]) == [], "it may be anywhere: the loopback leads to itself"
    assert addresses.towards(["unknown", "new"]) == ["fd00::9"]


def test_a_name_that_is_none_is_nowhere():
    assert addresses.towards(["a..b" + "x" * 300]) == []


# ---------------------------------------------------------------------------------------------------------------------------
# the relay of MPICH's launcher

PROXY = """
import socket, sys
host, port = sys.argv[2].rsplit(":", 1)
print("what a proxy prints is no part of what it says")
with socket.create_connection((host, int(port))) as sock:
    sock.sendall(b"from the proxy\\0" * 50000)
    sock.shutdown(socket.SHUT_WR)
    heard = b"".join(iter(lambda: sock.recv(65536), b""))
sys.exit(0 if heard == b"to the proxy\\xff" * 50000 else 9)
"""
"""Stands in for ``hydra_pmi_proxy``: calls where it is told to, speaks and listens."""


SLOW = PROXY.replace('    sock.sendall(b"from the proxy\\0" * 50000)\n    sock.shutdown(socket.SHUT_WR)\n', "").replace(
    "sys.exit(", '    sock.sendall(b"from the proxy\\0" * 50000)\nsys.exit('
)
"""The same, but it speaks once it has heard everything."""


def relayed(tmp_path, remote: str, proxy: str = PROXY) -> tuple[subprocess.Popen, socket.socket]:
    """A launcher's call to another node, and where it listens.  ``remote``: what stands in for ssh, a shell script."""
    (tmp_path / "proxy.py").write_text(proxy)
    reach = tmp_path / "reach"
    reach.write_text(f"#!/bin/sh\n{remote}\n")
    reach.chmod(0o700)
    launcher = socket.create_server(("127.0.0.1", 0))
    launcher.settimeout(20)
    call = f"{sys.executable} {tmp_path / 'proxy.py'} --control-port 127.0.0.1:{launcher.getsockname()[1]} --pgid 0"
    words = [sys.executable, "-P", "-m", "clustergauge.relay", "near", str(reach), "-x", "n1", *call.split()]
    environment = {"PYTHONPATH": str(code.ROOT), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE), launcher


@pytest.mark.parametrize("proxy", [PROXY, SLOW], ids=["at once", "after the launcher"])
def test_what_a_proxy_and_its_launcher_say_goes_by_the_remote_command(tmp_path, proxy):
    banner = 'test "$1" = n1 || exit 3; printf "Welcome to n1"; exec sh -c "$2"'  # no end of its line
    process, launcher = relayed(tmp_path, banner, proxy)
    sock, _ = launcher.accept()
    sock.sendall(b"to the proxy\xff" * 50000)
    sock.shutdown(socket.SHUT_WR)
    assert b"".join(iter(lambda: sock.recv(65536), b"")) == b"from the proxy\0" * 50000
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert b"Welcome to n1" in said
    assert b"no part of what it says" in said
    sock.close()
    launcher.close()


@pytest.mark.parametrize(
    ("remote", "proxy", "status", "words"),
    [
        ("echo no route to n1 >&2; exit 255", PROXY, 255, b"no route to n1"),
        ('exec sh -c "$2"', "raise SystemExit(7)", 7, b""),
    ],
)
def test_a_node_that_is_not_reached_and_a_proxy_that_never_calls_end_the_relay(tmp_path, remote, proxy, status, words):
    process, launcher = relayed(tmp_path, remote, proxy)
    _, said = process.communicate(timeout=20)
    launcher.close()
    assert process.returncode == status
    assert words in said


def test_a_launcher_that_goes_ends_the_proxy(tmp_path):
    waits = PROXY.partition("with socket")[0] + "socket.create_connection((host, int(port))).recv(1)\nraise SystemExit(5)\n"
    process, launcher = relayed(tmp_path, 'exec sh -c "$2"', waits)
    sock, _ = launcher.accept()
    sock.close()
    launcher.close()
    process.communicate(timeout=20)
    assert process.returncode == 5
