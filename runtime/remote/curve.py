"""ZeroMQ sockets over TCP: encrypted, and each end knows the other's key (CURVE)."""

from __future__ import annotations

import zmq

from ...ipc.transport.sockets import Context, Socket, open_socket
from .keys import ClientKeys, KeyPair

SCHEME = "tcp://"
DOMAIN = b"expertflow"
MAX_MESSAGE_BYTES = 16 * 2**20
MAX_UNHANDLED = 16
"""Messages of one client that wait to be handled; more stay in the client."""
MAX_UNREAD = 1000
"""Messages that one client may leave unread."""
HANDSHAKE_MS = 5000
"""Time for a connection to show its key."""
HEARTBEAT_MS, SILENCE_MS = 5000, 20_000
"""Interval of ZeroMQ's own heartbeats, and the silence after which a connection is given up."""


def open_client_socket(context: Context, keys: ClientKeys) -> Socket:
    """Return a DEALER that speaks with the server of these keys alone."""
    socket = open_socket(context, zmq.DEALER)
    socket.curve_serverkey = keys.server
    socket.curve_publickey, socket.curve_secretkey = keys.own.public, keys.own.secret
    _set_heartbeat(socket)
    return socket


def open_server_socket(context: Context, keys: KeyPair, listening_fd: int) -> Socket:
    """Return a ROUTER that accepts connections of the listening TCP socket `listening_fd`, which it will close.

    Without somebody who checks keys (ZAP) it accepts nobody.
    """
    socket = open_socket(context, zmq.ROUTER)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret
    socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.USE_FD, listening_fd)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    socket.setsockopt(zmq.RCVHWM, MAX_UNHANDLED)
    socket.setsockopt(zmq.SNDHWM, MAX_UNREAD)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    _set_heartbeat(socket)
    return socket


def _set_heartbeat(socket: Socket) -> None:
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, SILENCE_MS)
