"""The proxy's shell: the door for remote clients on one side, a connection to the engine for each on the other."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import zmq

from ...ipc.transport.addresses import CLIENTS, socket_address
from ...ipc.transport.handshakes import Handshakes
from ...ipc.transport.sockets import Context, Socket, open_socket
from .door import Door
from .remote_clients import (
    Answered,
    Close,
    Forward,
    Open,
    ProxyCounts,
    ProxyEvent,
    RemoteClients,
    Reply,
    Tick,
    Undelivered,
)

COUNTS = "remote"
"""File in the run directory with the proxy's counts, as JSON."""
TICK_S = 2.0
MAX_ANSWERS = 100
"""Messages of the engine to one client that are passed on before the others have their turn."""


class Proxy:
    """Passes messages on between remote clients and the engine at `run_dir`, until its process ends."""

    def __init__(self, context: Context, door: Door, run_dir: str, max_clients: int, tick_s: float = TICK_S) -> None:
        self._context, self._door, self._run_dir, self._max_clients = context, door, run_dir, max_clients
        self._tick_s = tick_s
        self._clients = RemoteClients(max_clients)
        self._uplinks: dict[bytes, Socket] = {}
        self._identities: dict[Socket, bytes] = {}
        self._poller = zmq.Poller()
        self._ticked_s = time.monotonic()
        self._written = b""
        self._probe = open_socket(context, zmq.DEALER)
        self._handshakes = Handshakes(self._probe)
        self._probe.connect(socket_address(run_dir, CLIENTS))
        self._poller.register(self._handshakes.socket, zmq.POLLIN)
        self._watch_door()

    @property
    def counts(self) -> ProxyCounts:
        """Return the counts since the start."""
        return self._clients.counts

    def step(self, timeout_s: float) -> None:
        """Wait for messages, at most `timeout_s`, and pass them on."""
        ready = dict(self._poller.poll(round(timeout_s * 1000)))
        self._door.check_keys()
        if self._handshakes.reconnected():  # the scheduler was restarted: clients must submit again
            self._reset()
            return
        for socket in ready:
            if socket in self._identities:
                self._pass_answers(socket)
        for arrived in self._door.receive():
            self._handle(arrived)
        if time.monotonic() - self._ticked_s >= self._tick_s:
            self._tick()

    def close(self) -> None:
        """Close all sockets but the context."""
        for identity in list(self._uplinks):
            self._close_uplink(identity)
        self._handshakes.close()
        self._probe.close(linger=0)
        self._door.close()

    def _pass_answers(self, socket: Socket) -> None:
        identity = self._identities[socket]
        for _ in range(MAX_ANSWERS):
            if socket.closed:  # its client has gone meanwhile
                return
            try:
                payload = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._handle(Answered(identity, payload))

    def _handle(self, event: ProxyEvent) -> None:
        for action in self._clients.handle(event):
            match action:
                case Reply():
                    self._reply(action)
                case Forward(identity, payload) if identity in self._uplinks:
                    self._uplinks[identity].send(payload, zmq.NOBLOCK)
                case Open(identity, channel):
                    self._open_uplink(identity, channel)
                case Close(identity):
                    self._close_uplink(identity)
                case _:
                    pass

    def _reply(self, reply: Reply) -> None:
        error = self._door.send(reply)
        if error:
            self._handle(Undelivered(reply.identity, reply.payload, gone=error == zmq.EHOSTUNREACH))

    def _tick(self) -> None:
        self._ticked_s = time.monotonic()
        self._handle(Tick(self._door.allows))
        self._write_counts()

    def _open_uplink(self, identity: bytes, channel: bytes) -> None:
        socket = open_socket(self._context, zmq.DEALER)
        socket.connect(socket_address(self._run_dir, channel.decode()))
        self._uplinks[identity], self._identities[socket] = socket, identity
        self._poller.register(socket, zmq.POLLIN)

    def _close_uplink(self, identity: bytes) -> None:
        socket = self._uplinks.pop(identity, None)
        if socket is not None:
            del self._identities[socket]
            self._poller.unregister(socket)
            socket.close(linger=0)

    def _reset(self) -> None:
        """Cut all connections, so that clients do what they do when a local scheduler is restarted."""
        for identity in list(self._uplinks):
            self._close_uplink(identity)
        for socket in self._door.sockets:
            self._poller.unregister(socket)
        self._door.reopen()
        self._clients = RemoteClients(self._max_clients, self.counts)
        self._watch_door()

    def _watch_door(self) -> None:
        for socket in self._door.sockets:
            self._poller.register(socket, zmq.POLLIN)

    def _write_counts(self) -> None:
        """Write the counts at once, so that a reader never sees half of them."""
        door = self._door
        refused = {"unknown_keys": door.unknown_keys, "strangers": door.strangers}
        text = msgspec.json.encode({**msgspec.to_builtins(self.counts), **refused, "dropped": door.dropped})
        if text == self._written:
            return
        fresh = Path(self._run_dir, f".{COUNTS}")
        try:
            fresh.write_bytes(text)
            os.replace(fresh, Path(self._run_dir, COUNTS))
        except OSError:  # the engine has just ended, or the disk is full
            return
        self._written = text
