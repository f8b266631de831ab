"""A bound socket for many peers: clients of the scheduler, stages and watchers of the supervisor."""

from __future__ import annotations

from typing import Generic, TypeVar

import zmq
from msgspec.msgpack import Decoder, Encoder

from ..messages import Message
from ..shared.open_files import free_files
from .codec import Unreadable, decode
from .delivery import Delivery
from .sockets import Context, open_socket

M = TypeVar("M")

MAX_MESSAGE_BYTES = 64 * 2**20
MAX_UNHANDLED = 1000
"""Messages of one peer that wait to be handled; more stay with the peer."""
SPARE_FILES = 128
"""Files that stay free for others than peers: a process without any could not open a link to a restarted stage."""


class Router(Generic[M]):
    """Receives typed messages from any peer and answers by identity. Sending never blocks.

    `dropped` counts answers to peers that are gone or do not read, `rejected` counts unreadable messages.
    """

    def __init__(self, context: Context, address: str, decoder: Decoder[M], high_water: int = 100_000) -> None:
        self.dropped = 0
        self.rejected = 0
        self.accepts = True
        """False while there are as many peers as this process may open files, less `SPARE_FILES`."""
        self.high_water = high_water
        """Messages that a peer may leave unread."""
        self._address = address
        self._decoder = decoder
        self._encoder = Encoder()
        self.socket = open_socket(context, zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.SNDHWM, high_water)
        self.socket.setsockopt(zmq.RCVHWM, MAX_UNHANDLED)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.bind(address)  # libzmq removes what a killed process left at this path

    def receive(self, limit: int = 1000) -> list[tuple[bytes, M | Unreadable]]:
        """Return arrived (identity, message) pairs, at most `limit`: a flooding peer must not hold the loop."""
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
        """Send to one peer; return False if the peer is gone or does not read: the message is dropped and counted."""
        return self.deliver(identity, message) == "sent"

    def deliver(self, identity: bytes, message: Message) -> Delivery:
        """Send as `send` does; return why not, if so."""
        try:
            self.socket.send_multipart([identity, self._encoder.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.dropped += 1
            return "gone" if error.errno == zmq.EHOSTUNREACH else "unread"
        return "sent"

    def check_room(self) -> None:
        """Let no more peers in while too few files are free; those that are in stay, others try again."""
        accepts = free_files() >= SPARE_FILES
        if accepts and not self.accepts:
            self.socket.bind(self._address)
        elif self.accepts and not accepts:
            self.socket.unbind(self._address)
        self.accepts = accepts

    def close(self, linger_ms: int = 0) -> None:
        """Close; the context may try for `linger_ms` to deliver messages already sent."""
        self.socket.close(linger=linger_ms)

    def _read(self, frames: list[bytes]) -> M | Unreadable:
        message = decode(self._decoder, frames[0]) if len(frames) == 1 else Unreadable(f"{len(frames)} frames, not one")
        if isinstance(message, Unreadable):
            self.rejected += 1
        return message
