"""Handshakes of a socket that connects: how often it was connected, and whether it was refused."""

from __future__ import annotations

import struct

import zmq

from .sockets import Socket

_EVENT = struct.Struct("=HI")
_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class Handshakes:
    """Watches the handshakes of a socket. Made before the socket connects: else the first one could be missed."""

    def __init__(self, socket: Socket) -> None:
        self.refused = False
        """True once the other end has refused the key of this one; ZeroMQ does not try again then."""
        self._watched = socket
        self._monitor = socket.get_monitor_socket(_EVENTS)
        self._connected_before = False

    @property
    def socket(self) -> Socket:
        """Return the socket to poll: it becomes readable when there is a handshake."""
        return self._monitor

    def reconnected(self) -> bool:
        """Return whether the process at the other end may have been replaced since the last call."""
        handshakes = 0
        while int(self._monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            event, _ = _EVENT.unpack(self._monitor.recv_multipart()[0])
            handshakes += event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            self.refused |= event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        reconnected = handshakes > 0 and (self._connected_before or handshakes > 1)
        self._connected_before = self._connected_before or handshakes > 0
        return reconnected

    def close(self) -> None:
        """Stop watching, before the socket is closed; if its context has closed both, do nothing."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._monitor.close(linger=0)
