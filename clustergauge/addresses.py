"""Addresses of machines, IPv6 and IPv4 alike: where to listen, how to call, and which interface bears one."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

BACKLOG = 4096
"""Clients that may wait to be accepted: all nodes call at once."""
KEEPALIVE = (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 12_000))
"""What makes the kernel give up a connection over a network whose other end says nothing for about 12 s (tcp(7)): a link that was
cut tells nobody.  No thread and no message of ours: the probes of an idle connection are the kernel's, one in 4 s."""

Address = str | tuple[str, int]
"""A path (Unix socket) or (host, port).  The empty host listens on all addresses of this machine, IPv6 and IPv4."""
_ZONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}", re.ASCII)
_SIOCGIFADDR = 0x8915
"""Address of an interface, netdevice(7)."""
_IF_INET6 = Path("/proc/net/if_inet6")


def ipv6(text: str) -> str:
    """An IPv6 address, with or without a zone (``fe80::1%eth0``), in the one way to write it.  Raises ``ValueError``."""
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None and not _ZONE.fullmatch(address.scope_id):
        raise ValueError(f"{address.scope_id!r} is not the name of a network interface")
    return str(address)


def is_number(text: str) -> bool:
    """Whether it is an address, IPv6 or IPv4, and no name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def listening(address: Address) -> socket.socket:
    """A socket that listens.  Raises ``OSError``."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(address)
        os.chmod(address, 0o600)  # noqa: PTH101 (a socket, not a file to open)
        sock.listen(BACKLOG)
        return sock
    host, port = address
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG)


def called(address: Address, timeout_s: float) -> socket.socket:
    """A connection, to the first of the host's addresses that answers, each within the time.  Raises ``OSError``.

    A link-local address does not say which interface leads there; by what name, each machine knows for itself.
    """
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    host, port = address
    ways = [host]
    if _is_link_local(host) and "%" not in host:
        ways = [f"{host}%{interface}" for _, interface in socket.if_nameindex()]
    problem = OSError("this machine has no network interface")
    for way in ways:
        try:
            return socket.create_connection((way, port), timeout_s)
        except OSError as error:
            problem = error
    raise problem


def written(address: Address) -> str:
    """For people."""
    if isinstance(address, str):
        return address
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def watch_over(sock: socket.socket) -> None:
    """Of a connection over a network: small messages at once, and an end to it when the other side is gone without a word."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def own_end(sock: socket.socket) -> str:
    """The address of this machine that a connection goes by, with its zone where that belongs to it; empty on a Unix socket."""
    if sock.family == socket.AF_UNIX:
        return ""
    host, _, *scope = sock.getsockname()
    zone = scope[1] if scope else 0
    return f"{host}%{socket.if_indextoname(zone)}" if zone and "%" not in host else str(host)


def towards(names: Sequence[str]) -> list[str]:
    """This machine's addresses by the routes to the first host that another machine bears: IPv4, IPv6, or both.

    That of the loopback where all are here; none where that cannot be told: a name leads nowhere, and the others lead here.
    Without a zone: that of another machine is its own affair.
    """
    found: list[str] = []
    here: dict[str, str] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for name in names:
            own = _source(name.rpartition("@")[2], family)
            if own and not ipaddress.ip_address(own).is_loopback:
                found.append(own)
                break
            if own:
                here.setdefault(name, own)
    return found or (list(here.values())[:1] if len(here) == len(set(names)) else [])


def interface_of(address: str, if_inet6: Path = _IF_INET6) -> str:
    """The network interface that bears an address; empty if none does."""
    if ":" not in address:
        return _ipv4_interface(address)
    host, _, zone = address.partition("%")
    if zone:
        return zone
    wanted = ipaddress.IPv6Address(host).packed.hex()
    with contextlib.suppress(OSError):
        for line in if_inet6.read_text().splitlines():
            fields = line.split()
            if len(fields) == 6 and fields[0] == wanted:
                return fields[5]
    return ""


def _is_link_local(host: str) -> bool:
    try:
        return ipaddress.IPv6Address(host).is_link_local
    except ValueError:  # a name, or IPv4
        return False


def _source(name: str, family: socket.AddressFamily) -> str:
    """This machine's address on the way to a host; empty if there is none.  Sends nothing."""
    with contextlib.suppress(OSError, UnicodeError):
        for _, kind, protocol, _, target in socket.getaddrinfo(name, 9, family, socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as asking:
                asking.connect(target)
                return str(asking.getsockname()[0]).partition("%")[0]
    return ""


def _ipv4_interface(address: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
