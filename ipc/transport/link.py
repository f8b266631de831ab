"""A typed one-to-one link between two processes; sending never blocks and works before the other end is there."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import zmq
from msgspec.msgpack import Decoder, Encoder

from ..messages import Message
from .addresses import Party, pair_address
from .codec import Unreadable, decode
from .sockets import Context, Socket, open_socket

M = TypeVar("M")


class Link(Generic[M]):
    """One end of a link. Of a pair, the end last by name binds (a ROUTER); the other connects (a DEALER).

    The bound end knows one identity: a stranger on the socket is counted in `rejected` and can neither be heard nor
    take messages away. What is sent before the peer is there waits in the outbox and goes when the peer's probe
    arrives, so polling for input is enough. Marks are off: credits of the protocol bound the traffic.
    """

    def __init__(self, socket: Socket, decoder: Decoder[M], peer: bytes = b"") -> None:
        self.socket = socket
        self.rejected = 0
        self._decoder = decoder
        self._encoder = Encoder()
        self._prefix = [peer] if peer else []
        self._outbox: deque[bytes] = deque()

    @classmethod
    def bind(cls, context: Context, address: str, decoder: Decoder[M], peer: bytes) -> Link[M]:
        """The end that binds `address` and talks to the peer of this identity only."""
        socket = open_socket(context, zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.bind(address)
        return cls(socket, decoder, peer)

    @classmethod
    def connect(cls, context: Context, address: str, decoder: Decoder[M], identity: bytes = b"") -> Link[M]:
        """The end that connects, now or when the other end appears."""
        socket = open_socket(context, zmq.DEALER)
        if identity:
            socket.setsockopt(zmq.ROUTING_ID, identity)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
        socket.connect(address)
        return cls(socket, decoder)

    @classmethod
    def pair(cls, context: Context, run_dir: str, me: Party, peer: Party, decoder: Decoder[M]) -> Link[M]:
        """This party's end of its link to `peer`."""
        address = pair_address(run_dir, me, peer)
        if me > peer:  # so compute, which may be long away from its poll, never waits for a probe
            return cls.bind(context, address, decoder, peer.identity)
        return cls.connect(context, address, decoder, me.identity)

    def send(self, message: Message) -> None:
        """Send, or keep until the peer is there."""
        self._outbox.append(self._encoder.encode(message))
        self._flush()

    def receive(self, limit: int = 1000) -> list[M]:
        """Everything that has arrived, at most `limit` messages; what cannot be read is dropped and counted."""
        messages: list[M] = []
        for _ in range(limit):
            # Asking first: most looks find nothing, and an exception costs ten times as much.
            if not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            messages += self._read(frames)
        return messages

    def close(self, linger_ms: int = 0) -> None:
        """Close; `linger_ms` is how long the context may still try to deliver what was sent."""
        self.socket.close(linger=linger_ms)

    def _read(self, frames: list[bytes]) -> list[M]:
        if frames[:-1] != self._prefix:
            self.rejected += 1
            return []
        if not frames[-1]:  # the probe of a peer that has just connected
            self._flush()
            return []
        message = decode(self._decoder, frames[-1])
        if isinstance(message, Unreadable):
            self.rejected += 1
            return []
        return [message]

    def _flush(self) -> None:
        while self._outbox:
            try:
                self.socket.send_multipart([*self._prefix, self._outbox[0]], zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                    return
                raise
            self._outbox.popleft()
