"""Whether something listens at an address, and whether a proxy stands before it, so that nobody can know."""

from __future__ import annotations

import ipaddress
import re
import socket
import urllib.request
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

PORTS: Final = {"http": 80, "https": 443, "grpc": 4317, "aim": 53800}
"""Where a server listens whose address has no port."""
_PROXIES: Final = {"http": ("http", "all"), "https": ("https", "all")}
_GRPC_PROXIES: Final = ("grpc", "https", "http")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True, slots=True)
class Address:
    """Of a server: of its URL, all that may be shown."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def scheme_of(url: str) -> str:
    """`https` of `https://host`; empty if it begins with none."""
    found = _SCHEME.match(url)
    return found[1].lower() if found else ""


def address(url: str) -> Address | None:
    """The server that a URL names; None if it names no host.

    Raises:
        ValueError: It is no URL.
    """
    parts = urlsplit(url)
    port = parts.port  # before anything else: it is what raises
    if not parts.hostname:
        return None
    return Address(parts.scheme, parts.hostname, port or PORTS.get(parts.scheme, 443))


def proxied(server: Address) -> bool:
    """Whether the environment (`HTTPS_PROXY`, `NO_PROXY`, ...) leads to a server through a proxy."""
    proxies = urllib.request.getproxies()
    if not any(proxies.get(name) for name in _PROXIES.get(server.scheme, _GRPC_PROXIES)):
        return False
    if urllib.request.proxy_bypass(f"{server.host}:{server.port}"):
        return False
    return not _in_a_network(server.host, proxies.get("no", ""))


def _in_a_network(host: str, passed_by: str) -> bool:
    # As `requests` and Go read NO_PROXY; the standard library knows no `10.0.0.0/8`.
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return False
    for part in passed_by.split(","):
        try:
            if number in ipaddress.ip_network(part.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def knock(server: Address, seconds: float) -> None:
    """Open a connection and close it.

    Raises:
        OSError: Nothing listens there, or nothing answers in that time.
    """
    socket.create_connection((server.host, server.port), seconds).close()
