"""The proxy's socket for remote clients, and the check of their keys (ZAP)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import zmq
from zmq.auth.base import Authenticator

from ...ipc.transport.sockets import Context, Socket
from ..service.listening import url_of
from .curve import DOMAIN, SCHEME, open_server_socket
from .keys import AllowedKeys, KeyPair
from .remote_clients import Arrived, Reply

_EVENT = struct.Struct("=HI")
_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED
MAX_RECEIVED = 200


class Door:
    """Lets in whoever shows an allowed key; `unknown_keys` and `strangers` count the others.

    `dropped` counts messages of a wrong form, and those with a key that was withdrawn.
    """

    def __init__(self, context: Context, pair: KeyPair, allowed: AllowedKeys, listener: socket.socket) -> None:
        self.unknown_keys = self.dropped = 0
        self._accepted = self._succeeded = 0
        self._context, self._pair, self._allowed, self._listener = context, pair, allowed, listener
        self._auth = Authenticator(context)
        self._auth.start()
        self._auth.configure_curve_callback(DOMAIN.decode(), self)
        self._open()

    @property
    def sockets(self) -> tuple[Socket, Socket, Socket]:
        """Return the sockets to poll."""
        return self._router, self._auth.zap_socket, self._monitor

    @property
    def strangers(self) -> int:
        """Return how many connections have shown no key: they speak something else, or are not done yet."""
        return max(0, self._accepted - self._succeeded - self.unknown_keys)

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a public key (Z85) is allowed; pyzmq asks at every handshake."""
        is_allowed = self.allows(key)
        self.unknown_keys += not is_allowed
        return is_allowed

    def allows(self, key: bytes) -> bool:
        """Return whether a public key (Z85) is allowed now."""
        self._allowed.refresh()
        return self._allowed.name_of(key) is not None

    def check_keys(self) -> None:
        """Answer the handshakes that wait for it, and count connections."""
        while int(self._auth.zap_socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            _finish(self._auth.handle_zap_message(self._auth.zap_socket.recv_multipart()))
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, _ = _EVENT.unpack(self._monitor.recv_multipart()[0])
            self._accepted += event == zmq.EVENT_ACCEPTED
            self._succeeded += event == zmq.EVENT_HANDSHAKE_SUCCEEDED

    def receive(self) -> list[Arrived]:
        """Return messages that have arrived, at most `MAX_RECEIVED`: a flooding client must not hold the loop."""
        arrived: list[Arrived] = []
        for _ in range(MAX_RECEIVED):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            key = str(frames[-1].get("User-Id")).encode()
            if len(frames) == 3 and self.allows(key):  # a key may have been withdrawn since the handshake
                identity, channel, payload = (frame.bytes for frame in frames)
                arrived.append(Arrived(identity, key, channel, payload))
            else:
                self.dropped += 1
        return arrived

    def send(self, reply: Reply) -> int:
        """Send to a client; return 0, or the error: EHOSTUNREACH for one that has gone, EAGAIN for a slow one."""
        try:
            self._router.send_multipart([*reply], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return error.errno or 0
        return 0

    def reopen(self) -> None:
        """Cut all connections; clients connect again by themselves, and see that they did."""
        self._close()
        self._open()

    def close(self) -> None:
        """Close all sockets."""
        self._close()
        self._auth.stop()

    def _open(self) -> None:
        fd = os.dup(self._listener.fileno())
        self._router = open_server_socket(self._context, self._pair, fd)
        self._monitor = self._router.get_monitor_socket(_WATCHED)
        self._monitor.set_hwm(0)  # else unread events would hold up the thread that accepts connections
        self._router.bind(url_of(self._listener, SCHEME))

    def _close(self) -> None:
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close(linger=0)


def _finish(checking: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing, as no event loop runs here."""
    with suppress(StopIteration):
        checking.send(None)
