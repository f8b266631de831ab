"""One engine of a client: its sockets and its session.

The engine lives as long as its supervisor holds the lock on the run directory (the kernel releases it however the
supervisor dies); over TCP, silence alone shows its end. A restarted scheduler shows by the socket's own reconnect.

A trap: the descriptor of a ZeroMQ socket (`zmq.FD`) does not signal that a message has arrived. It signals that
something may have changed since the last call on the socket, and any call, a send included, resets it. Before waiting
on the descriptor all messages must be received, and again after every send; else the wait is for a message that has
already arrived. `EnginePool` does so.
"""

from __future__ import annotations

import secrets

import zmq

from ...errors import EngineError
from ...ipc.messages import Hello, Refused, ToClient, Welcome
from ...ipc.messages.to_client import TO_CLIENT
from ...ipc.shared.open_files import CLIENT_FILES, require_open_files
from ...ipc.transport.addresses import CLIENTS
from ...ipc.transport.handshakes import Handshakes
from ...ipc.transport.link import Link
from ...ipc.transport.sockets import Context, Socket
from .address import Route, key_unknown
from .session import WINDOW, EngineSession

REQUESTS_AHEAD = 2
"""Requests that one of several engines gets, for each that it runs at the same time."""
_HELLO_NS = 5_000_000_000
_LINGER_MS = 200


class EngineConnection:
    """A client's link to the scheduler of the engine that `route` leads to. Raises EngineError if there is none.

    `window`: requests under way at the scheduler at once; None: all, up to what it queues and runs.
    """

    def __init__(self, context: Context, route: Route, answer_timeout_s: float, window: int | None = WINDOW) -> None:
        self.route = route
        self.session = EngineSession(origin=secrets.token_hex(8))
        self.welcome: Welcome | None = None
        self._window = window
        self._answer_timeout_ns = round(answer_timeout_s * 1e9)
        route.require_engine()
        require_open_files(CLIENT_FILES, "a client")
        # No identity is set, so the scheduler cannot confuse this connection with a dead one. The monitor opens before
        # the socket connects: else the first handshake could be missed and a second one taken for it.
        socket = route.open(context)
        self._handshakes = Handshakes(socket)
        socket.connect(route.endpoint(CLIENTS))
        self._link: Link[ToClient] = Link(socket, TO_CLIENT, route.prefix(CLIENTS))
        self._refusal: EngineError | None = None
        self._heard = False
        self._silent_ns = self._hello_at_ns = 0
        self._link.send(Hello())

    @property
    def fds(self) -> tuple[int, int]:
        """Descriptors that become readable when `receive` may find something (see the trap above)."""
        return int(self._link.socket.getsockopt(zmq.FD)), int(self._handshakes.socket.getsockopt(zmq.FD))

    def receive(self, now_ns: int) -> bool:
        """Receive what has arrived, at most a thousand messages.

        Returns False if nothing had arrived and nothing is left: then the descriptors can be waited on.
        """
        messages = self._link.receive()
        for message in messages:
            self._on_message(message, now_ns)
        self._heard |= bool(messages)
        reconnected = self._handshakes.reconnected()
        if reconnected:  # after the old scheduler's last messages
            self.session.on_reconnect()
        return bool(messages) or reconnected or _readable(self._link.socket)

    def send_due(self, now_ns: int) -> None:
        """Send the session's due messages; never blocks."""
        for message in self.session.due(now_ns):
            self._link.send(message)

    def check(self, waited_ns: int) -> None:
        """Check the engine. `waited_ns` is the time for which the client has listened since the last check.

        Raises EngineError if the engine has ended, lets this client not in, or was silent for `answer_timeout_s`.
        """
        if self._handshakes.refused:
            raise key_unknown(self.route)
        if self._refusal is not None:
            raise self._refusal
        if self._heard:
            self._heard = False
            self._silent_ns = self._hello_at_ns = 0
            return
        self.route.require_alive()
        self._silent_ns += waited_ns
        if self._silent_ns - self._hello_at_ns > _HELLO_NS:
            self._hello_at_ns = self._silent_ns
            self._link.send(Hello())
        if self._silent_ns > self._answer_timeout_ns:
            what = f"the scheduler has not answered for {self._silent_ns / 1e9:.0f} s"
            raise EngineError(what, self.route.address, "`expertflow top` shows what it waits for")

    def close(self) -> None:
        """Cancel open requests and disconnect; the last messages have 200 ms to go out."""
        for message in self.session.cancellations():
            self._link.send(message)
        self._handshakes.close()
        self._link.close(_LINGER_MS)

    def _on_message(self, message: ToClient, now_ns: int) -> None:
        if isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Refused) and not message.request_id:  # the client itself is not let in
            self._refusal = EngineError(message.error.what, self.route.address, message.error.remedy)
        else:
            self.session.receive(message, now_ns)

    def _on_welcome(self, welcome: Welcome) -> None:
        if self.welcome is None:
            whole = welcome.queue_limit + welcome.batch_size
            self.session.window = whole if self._window is None else max(1, min(self._window, welcome.queue_limit))
            self.session.max_outstanding = min(self.session.window, REQUESTS_AHEAD * welcome.batch_size)
        self.welcome = welcome


def _readable(socket: Socket) -> bool:
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
