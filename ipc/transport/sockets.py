"""ZeroMQ sockets with the options that all of ours share."""

from __future__ import annotations

import zmq

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


def open_socket(context: Context, socket_type: int) -> Socket:
    """Return a socket without lingering and without high-water marks, with quick reconnects."""
    socket = context.socket(socket_type)
    socket.linger = 0
    socket.set_hwm(0)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    return socket
