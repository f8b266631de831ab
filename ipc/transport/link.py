"""A typed one-to-one link between two processes; sending never blocks and works before the other end exists."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import zmq
from msgspec.msgpack import Decoder, Encoder

from ..messages import Message
from .addresses import Party, pair_address
from .codec import Unreadable, decode
from .handshakes import Handshakes
from .sockets import Context, Socket, open_socket

M = TypeVar("M")


class LinkCut(BaseException):
    """The connection between two living processes broke, and ZeroMQ made another: messages in between may be lost.

    The process has to end, so this is no `Exception`: whoever goes on after the failure of a row does not catch it.
    """


class Link(Generic[M]):
    """One end of a link. In a pair, the end last by name binds (a ROUTER); the other connects (a DEALER).

    The bound end accepts one identity: messages of others are dropped and counted in `rejected`. Messages sent before
    the peer connects wait in the outbox and go out when the peer's probe arrives, so polling for input is enough.
    High-water marks are off: the credits of the protocol bound the traffic.

    A connection that breaks between two living processes is lost with what was on its way in either direction. ZeroMQ
    makes another and says nothing of it. The end that connects counts its handshakes, since an address is of one start
    of the peer: `require_whole` raises from the second one on. The stage dies of it, and its successor begins with an
    empty link, as after any death.
    """

    def __init__(
        self, socket: Socket, decoder: Decoder[M], peer: bytes = b"", handshakes: Handshakes | None = None
    ) -> None:
        self.socket = socket
        self.rejected = 0
        self._decoder = decoder
        self._encoder = Encoder()
        self._prefix = [peer] if peer else []
        self._outbox: deque[bytes] = deque()
        self._handshakes = handshakes

    @classmethod
    def bind(cls, context: Context, address: str, decoder: Decoder[M], peer: bytes) -> Link[M]:
        """Return the end that binds `address` and accepts only the peer of this identity."""
        socket = open_socket(context, zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.bind(address)
        return cls(socket, decoder, peer)

    @classmethod
    def connect(cls, context: Context, address: str, decoder: Decoder[M], identity: bytes = b"") -> Link[M]:
        """Return the end that connects, now or when the other end appears."""
        socket = open_socket(context, zmq.DEALER)
        if identity:
            socket.setsockopt(zmq.ROUTING_ID, identity)
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
        handshakes = Handshakes(socket)
        socket.connect(address)
        return cls(socket, decoder, handshakes=handshakes)

    @classmethod
    def pair(cls, context: Context, run_dir: str, party: Party, peer: Party, decoder: Decoder[M]) -> Link[M]:
        """Return the end of `party` of its link to `peer`."""
        address = pair_address(run_dir, party, peer)
        if party > peer:  # so compute, which may not poll for long, never waits for a probe
            return cls.bind(context, address, decoder, peer.identity)
        return cls.connect(context, address, decoder, party.identity)

    def send(self, message: Message) -> None:
        """Send, or keep the message until the peer connects."""
        self._outbox.append(self._encoder.encode(message))
        self._flush()

    def receive(self, limit: int = 1000) -> list[M]:
        """Return the messages that have arrived, at most `limit`; unreadable ones are dropped and counted."""
        messages: list[M] = []
        for _ in range(limit):
            # Check first: mostly nothing has arrived, and an exception costs ten times as much.
            if not int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                break
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            messages += self._read(frames)
        return messages

    def require_whole(self) -> None:
        """Raise LinkCut if the connection has broken and was made again. Takes a microsecond; call it now and then."""
        if self._handshakes is not None and self._handshakes.reconnected():
            raise LinkCut("a connection broke and was made again: messages may be lost")

    def close(self, linger_ms: int = 0) -> None:
        """Close; the context may try for `linger_ms` to deliver messages already sent."""
        if self._handshakes is not None:
            self._handshakes.close()
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
