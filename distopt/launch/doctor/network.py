"""Interfaces, addresses, and whether nodes can open a connection to one another."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from distopt.launch.doctor.facts import Network

_SIOCGIFADDR: Final = 0x8915
"""Linux's request for an interface's IPv4 address."""


def probe_network() -> Network:
    """This process's way to the others, by the rules of gloo and NCCL."""
    interfaces = _interfaces()
    return Network(
        interfaces, _towards(os.environ.get("MASTER_ADDR")), _of_gloo(interfaces), _of_nccl(interfaces)
    )


def listen(addresses: set[str]) -> list[socket.socket]:
    """A socket at each address, at which the system accepts connections without our doing anything."""
    return [
        socket.create_server(
            (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=1024
        )
        for address in addresses
    ]


def unreachable(peers: Mapping[int, list[tuple[str, int]]], timeout: float) -> dict[int, str]:
    """To which peers no connection can be opened, and why.

    Args:
        peers: Rank → the addresses and ports at which it listens.
        timeout: Seconds for each.

    Returns:
        Rank → the address and what the system says: `127.0.1.1: Connection refused`.
    """

    def attempt(rank: int, address: str, port: int) -> tuple[int, str] | None:
        try:
            socket.create_connection((address, port), timeout).close()
        except OSError as error:
            return rank, f"{address}: {error.strerror or error}"
        return None

    ends = [(rank, *end) for rank, listened in peers.items() for end in listened]
    with ThreadPoolExecutor(64) as threads:
        return (
            dict(failed for failed in threads.map(attempt, *zip(*ends, strict=True)) if failed)
            if ends
            else {}
        )


def _interfaces() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
            except OSError:  # it has none
                continue
            found.setdefault(name, []).append(socket.inet_ntoa(reply[20:24]))
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        number, _, _, scope, _, name = line.split()
        if scope in ("00", "10"):  # global, or of this host: the others need the interface's name beside them
            found.setdefault(name, []).append(str(IPv6Address(int(number, 16))))
    return found


def _towards(master: str | None) -> str:
    """The address from which packets to `master` leave; none is sent."""
    try:
        family, kind, _, _, end = socket.getaddrinfo(master or "localhost", 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as to_master:
            to_master.connect(end)
            return str(to_master.getsockname()[0])
    except OSError as error:
        return f"no way to {master}: {error.strerror}"


def _of_gloo(interfaces: Mapping[str, list[str]]) -> str | None:
    """As torch chooses: GLOO_SOCKET_IFNAME, else what the host's name means here, else the loopback."""
    if names := os.environ.get("GLOO_SOCKET_IFNAME"):
        return next(iter(interfaces.get(names.split(",")[0], ())), None)
    try:
        ends = socket.getaddrinfo(socket.gethostname(), 0, type=socket.SOCK_STREAM)
    except OSError:
        ends = []
    for family, kind, _, _, end in ends:
        with socket.socket(family, kind) as candidate:
            try:
                candidate.bind(end)
            except OSError:
                continue
            return str(end[0])
    return "127.0.0.1"


def _of_nccl(interfaces: Mapping[str, list[str]]) -> str | None:
    """The first interface that NCCL_SOCKET_IFNAME allows: prefixes, `=` whole names, `^` all but these."""
    pattern = os.environ.get("NCCL_SOCKET_IFNAME")
    if not pattern:
        return None
    kept, exactly = not pattern.startswith("^"), pattern.lstrip("^").startswith("=")
    names = tuple(pattern.lstrip("^=").split(","))
    for name, addresses in interfaces.items():
        if (name in names if exactly else name.startswith(names)) == kept:
            return addresses[0]
    return None
