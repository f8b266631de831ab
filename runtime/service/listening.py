"""Addresses and sockets that a command listens on, for servers that run in processes of their own."""

from __future__ import annotations

import ipaddress
import socket

from ...errors import UsageError

LOOPBACK = "127.0.0.1"
MAX_PORT = 65_535
BACKLOG = 2048


def read_address(text: str, option: str = "--http") -> tuple[str, int]:
    """Return host and port of `[HOST:]PORT`; the host is the loopback unless named. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if colon else LOOPBACK
    if not port.isdecimal() or int(port) > MAX_PORT or not host:
        remedy = "Write for example 8000, 0.0.0.0:8000 or [::1]:8000"
        raise UsageError(f"must be [HOST:]PORT, not '{text}'", option, remedy)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, option: str = "--http") -> socket.socket:
    """Return a listening socket. Raises UsageError for an address that cannot be bound."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return _listen(socket.socket(family, kind, proto), address)
    except OSError as error:
        what = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise UsageError(what, option, "Choose another port; 0 takes a free one") from error


def url_of(opened: socket.socket, scheme: str = "http://") -> str:
    """Return the address of a listening socket for clients."""
    host, port = opened.getsockname()[:2]
    return f"{scheme}[{host}]:{port}" if ":" in host else f"{scheme}{host}:{port}"


def _listen(opened: socket.socket, address: tuple[object, ...]) -> socket.socket:
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened
