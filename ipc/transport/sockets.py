"""Sockets with the house's options."""

from __future__ import annotations

import zmq

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]


def open_socket(context: Context, kind: int) -> Socket:
    """A socket on which nothing lingers, no marks hold, and reconnects are quick."""
    socket = context.socket(kind)
    socket.linger = 0
    socket.set_hwm(0)
    socket.setsockopt(zmq.RECONNECT_IVL, 5)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
    return socket
