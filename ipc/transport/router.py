"""A bound socket that many may talk to: clients to the scheduler, stages and watchers to the supervisor."""

from __future__ import annotations

from typing import Generic, TypeVar

import zmq
from msgspec.msgpack import Decoder, Encoder

from ..messages import Message
from .codec import Unreadable, decode
from .sockets import Context, open_socket

M = TypeVar("M")

LARGEST_MESSAGE_BYTES = 64 * 2**20


class Router(Generic[M]):
    """Typed messages from anybody, answers by identity. A send never blocks: to a vanished or stuck peer it is dropped.

    `dropped` counts answers nobody took, `rejected` what could not be read.
    """

    def __init__(self, context: Context, address: str, decoder: Decoder[M], high_water: int = 100_000) -> None:
        self.dropped = 0
        self.rejected = 0
        self._decoder = decoder
        self._encoder = Encoder()
        self.socket = open_socket(context, zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, high_water)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LARGEST_MESSAGE_BYTES)
        self.socket.bind(address)  # libzmq removes what a killed process left at this path

    def receive(self, limit: int = 1000) -> list[tuple[bytes, M | Unreadable]]:
        """What has arrived, at most `limit`, so that one flooding peer cannot hold the loop."""
        received: list[tuple[bytes, M | Unreadable]] = []
        for _ in range(limit):
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            if frames != [b""]:  # the probe of a `Link` that has just connected
                received.append((identity, self._read(frames)))
        return received

    def send(self, identity: bytes, message: Message) -> bool:
        """Send to one peer; False if it is gone or does not read, then the message is dropped and counted."""
        try:
            self.socket.send_multipart([identity, self._encoder.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.dropped += 1
            return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close; `linger_ms` is how long the context may still try to deliver what was sent."""
        self.socket.close(linger=linger_ms)

    def _read(self, frames: list[bytes]) -> M | Unreadable:
        message = decode(self._decoder, frames[0]) if len(frames) == 1 else Unreadable(f"{len(frames)} frames, not one")
        if isinstance(message, Unreadable):
            self.rejected += 1
        return message
