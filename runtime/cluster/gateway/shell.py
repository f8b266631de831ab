"""The gateway as clients see it: an engine's run directory whose requests go to replicas. Runs in an event loop.

Clients (`Client`, `AsyncClient`, the HTTP server, batch files, other languages) connect to `address` as to an engine.
How frames reach a replica is the transport's affair (`ReplicaPort`): Ray, or a socket on the same machine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import zmq

from ....ipc.messages import Finished, Hello, Refused, Submit, ToClient, Welcome
from ....ipc.messages.to_client import TO_CLIENT
from ....ipc.messages.to_scheduler import FROM_CLIENT, FromClient
from ....ipc.shared.rundir import RunDir
from ....ipc.transport.addresses import CLIENTS, socket_address
from ....ipc.transport.codec import Unreadable, decode
from ....ipc.transport.delivery import Delivery
from ....ipc.transport.router import Router as ClientSocket
from ....ipc.transport.sockets import Context
from ....ipc.transport.unread import UnreadClients
from ..routing.fleet import ReplicaState
from .events import (
    ClientGone,
    FromFront,
    FromReplica,
    GatewayEvent,
    ReplicaDraining,
    ReplicaJoined,
    ReplicaLost,
    SendToClient,
    StatePublished,
    Tick,
)
from .state import Gateway

TICK_S = 0.1
LINGER_MS = 200
_HELLO = msgspec.msgpack.encode(Hello())


class ReplicaPort(Protocol):
    """Sends frames to the engine of one replica."""

    def send(self, frames: list[bytes]) -> None:
        """Send; never blocks. Frames to a replica that is gone are dropped."""
        ...


class GatewayShell:
    """Drives a gateway from the running event loop. Not thread-safe."""

    def __init__(self, gateway: Gateway, run_dir: RunDir) -> None:
        """Open the socket for clients in `run_dir`, which is closed by `close`."""
        self.gateway = gateway
        self.ready = asyncio.Event()
        """Set once a replica has joined."""
        self._run_dir = run_dir
        self._loop = asyncio.get_running_loop()
        self._context: Context = zmq.Context()
        self._clients: ClientSocket[FromClient] = ClientSocket(
            self._context, socket_address(str(run_dir.path), CLIENTS), FROM_CLIENT
        )
        self._unread = UnreadClients()
        self._ports: dict[str, ReplicaPort] = {}
        self._outbox: dict[str, list[bytes]] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._pumping: asyncio.Handle | None = None
        self._fd = int(self._clients.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._pump)
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self.on_tick: list[Callable[[], None]] = []
        """Functions that are called ten times a second."""
        self._pump()

    @property
    def address(self) -> str:
        """Return the address for clients."""
        return str(self._run_dir.path)

    # Replicas

    def connect(self, name: str, port: ReplicaPort) -> None:
        """Greet a replica; it joins when its engine answers."""
        self._ports[name] = port
        port.send([_HELLO])

    def receive(self, name: str, frames: list[bytes]) -> None:
        """Take frames of the engine of a replica."""
        answers: list[GatewayEvent] = []
        for frame in frames:
            message = decode(TO_CLIENT, frame)
            if isinstance(message, Unreadable):
                logging.getLogger(__name__).warning("%s sent what cannot be read: %s", name, message.reason)
            elif isinstance(message, Welcome):
                self._welcome(name, message)
            else:
                answers.append(FromReplica(name, message))
        self._handle(*answers)
        self._flush()

    def publish(self, name: str, state: ReplicaState) -> None:
        """Take the state of a replica."""
        self._handle(StatePublished(name, state))
        self._flush()

    def drain(self, name: str) -> None:
        """Let the requests of a replica that is about to end go on elsewhere."""
        self._handle(ReplicaDraining(name))
        self._flush()

    def lose(self, name: str) -> None:
        """Note that a replica is gone: its requests go on elsewhere."""
        if self._ports.pop(name, None) is not None:
            self._outbox.pop(name, None)
            self._handle(ReplicaLost(name))
            self._flush()

    def close(self) -> None:
        """Close the socket and remove the run directory; clients see an engine that has ended. Idempotent."""
        if self._context.closed:
            return
        self._timer.cancel()
        self._loop.remove_reader(self._fd)
        if self._pumping is not None:
            self._pumping.cancel()
        self._clients.close(LINGER_MS)
        self._context.term()
        self._run_dir.close()

    def _welcome(self, name: str, facts: Welcome) -> None:
        if name in self._ports and name not in self.gateway.router.fleet:
            self._handle(ReplicaJoined(name, facts))
            self.ready.set()

    # Clients

    def _pump(self) -> None:
        """Receive from clients until nothing is left: the descriptor does not tell twice of what has arrived."""
        self._pumping = None
        while received := self._clients.receive():
            events: list[GatewayEvent] = []
            for identity, message in received:
                if isinstance(message, Submit):
                    self._unread.discard(identity, message.request_id)
                if not isinstance(message, Unreadable):
                    events.append(FromFront(identity, message))
            self._handle(*events)
        self._flush()

    def _handle(self, *events: GatewayEvent) -> None:
        failed: dict[bytes, tuple[Delivery, list[str]]] = {}
        for action in self.gateway.handle_all(events, time.monotonic_ns()):
            if isinstance(action, SendToClient):
                delivery = self._answer(action.identity, action.message)
                if delivery != "sent":
                    _, lost = failed.get(action.identity, (delivery, []))
                    failed[action.identity] = delivery, [*lost, getattr(action.message, "request_id", "")]
            else:
                self._outbox.setdefault(action.name, []).append(self._encoder.encode(action.message))
        for identity, (delivery, lost) in failed.items():
            self._drop_client(identity, delivery, lost)

    def _answer(self, identity: bytes, message: ToClient) -> Delivery:
        delivery = self._clients.deliver(identity, message)
        if delivery == "sent" and isinstance(message, Finished | Refused):
            self._unread.discard(identity, message.request_id)
        return delivery

    def _drop_client(self, identity: bytes, delivery: Delivery, request_ids: list[str]) -> None:
        """Drop the requests of a client that has gone, or reads nothing: that one is told when it reads again.

        `request_ids` are those of the answers that could not be sent.
        """
        lost = [stream.submit.request_id for stream in self.gateway.book.streams_of(identity)]
        self._handle(ClientGone(identity))
        if delivery == "gone":
            self._unread.forget(identity)
        elif self._unread.lose(identity, [*lost, *request_ids]):
            words = "a client left %d answers unread: %d requests were dropped, and it is told when it reads"
            logging.getLogger(__name__).warning(words, self._clients.high_water, len(lost))

    def _flush(self) -> None:
        """Send what is due to replicas, and look again for what clients sent: sending takes the descriptor's signal."""
        outbox, self._outbox = self._outbox, {}
        for name, frames in outbox.items():
            if (port := self._ports.get(name)) is not None:
                port.send(frames)
        if self._pumping is None and int(self._clients.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._pumping = self._loop.call_soon(self._pump)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._handle(Tick())
        self._unread.tell(self._clients.deliver, self._clients.high_water, time.monotonic_ns())
        self._flush()
        for listener in self.on_tick:
            listener()
