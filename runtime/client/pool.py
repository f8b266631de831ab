"""All engines of a client as one state machine, driven by one file descriptor.

    while ...:
        wait until pool.fileno() is readable, at most until pool.next_deadline()
        pool.on_readable()      # or pool.on_deadline()

Its driver (`Client`, `AsyncClient`, a server of your own) needs neither a thread nor an event loop of this package.
After every call the descriptor can be waited on: everything that had arrived was received, or `next_deadline` is "at
once" (see the trap in `connection.py`). `RequestBalancer` and the `EngineSession`s decide; they know no socket and no
clock.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Iterable, Sequence

import zmq

from ...errors import EngineError, ExpertFlowError
from ...ipc.messages import Welcome
from ...ipc.transport.sockets import Context
from .address import Address, Route, no_engine_left, routes_to
from .balancer import RequestBalancer
from .connection import EngineConnection
from .monitors import EngineMonitors
from .request import ClientRequest
from .session import WINDOW

CHECK_EVERY_NS = 500_000_000
"""The engine is checked at this interval while something is awaited from it."""


class EnginePool:
    """Connections to the live engines: one, or those of a group. Raises EngineError if there is none.

    `keys`: folder of the client's keys, for an engine over TCP. Not thread-safe.
    """

    def __init__(
        self,
        address: Address,
        answer_timeout_s: float,
        window: int | None = WINDOW,
        keys: Address | None = None,
    ) -> None:
        self.failure: ExpertFlowError | None = None
        """The error that ended the last engine; None while one lives."""
        routes, self._is_group = routes_to(address, keys)
        self._address = address
        self._context: Context = zmq.Context()
        self._epoll = select.epoll()
        self._connections: list[EngineConnection] = []
        self._balancer = RequestBalancer()
        self._checked_ns = time.monotonic_ns()
        self._more = False
        """Set if the descriptor may not signal although there is something to do."""
        try:
            self._connect(routes, answer_timeout_s, window)
        except BaseException:
            self.close()
            raise

    @property
    def welcome(self) -> Welcome | None:
        """Return facts of the model; None before every engine has answered."""
        answers = [connection.welcome for connection in self._connections]
        return answers[0] if answers and all(answers) else None

    # Driving

    def fileno(self) -> int:
        """Return the descriptor to wait on for reading. It stays the same, and is closed by `close`."""
        return self._epoll.fileno()

    def next_deadline(self) -> int | None:
        """Return when to call `on_deadline` (of `time.monotonic_ns`); None: not before something arrives.

        0, which is long past, means at once: the last call has left something to do.
        """
        if self._more:
            return 0
        if not self._awaiting:
            return None
        due_ns = self._balancer.next_due_ns()
        check_ns = self._checked_ns + CHECK_EVERY_NS
        return check_ns if due_ns is None else min(due_ns, check_ns)

    def on_readable(self) -> None:
        """Receive what has arrived and send what is due. A call without need does no harm."""
        self._advance()

    def on_deadline(self) -> None:
        """End overdue requests, send what is due, check the engines. A call too early does no harm."""
        self._advance()

    # Requests

    def submit(self, requests: Iterable[ClientRequest]) -> None:
        """Submit requests; their answers arrive while the pool is driven."""
        self.enqueue(requests)
        self._advance()

    def enqueue(self, requests: Iterable[ClientRequest]) -> None:
        """Submit requests that `on_deadline`, which must be called soon, sends: many calls cost one send then."""
        now_ns = time.monotonic_ns()
        if not self._awaiting:
            self._checked_ns = now_ns  # silence counts from now on
        for request in requests:
            if not request.ended:
                self._balancer.submit(request, now_ns)

    def cancel(self, requests: Iterable[ClientRequest]) -> None:
        """Cancel requests: they end between two steps, with the tokens they have."""
        for request in requests:
            self._balancer.cancel(request)
        self._advance()

    def monitors(self) -> EngineMonitors:
        """Return monitor sockets of the live engines."""
        return EngineMonitors(self._context, [connection.route for connection in self._connections], self._is_group)

    def close(self) -> None:
        """Cancel open requests and disconnect. May block for a fifth of a second. Idempotent."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        self._epoll.close()
        self._context.destroy(linger=None)

    @property
    def _awaiting(self) -> bool:
        """Return whether an answer of an engine is expected."""
        return bool(self._connections) and (self._balancer.open_count > 0 or self.welcome is None)

    def _connect(self, routes: Sequence[Route], answer_timeout_s: float, window: int | None) -> None:
        end = no_engine_left(self._address)
        for route in routes:
            try:
                self._add(EngineConnection(self._context, route, answer_timeout_s, window))
            except EngineError as error:  # an engine of a group has just ended
                end = error
        if not self._connections:
            raise end
        self._advance()

    def _add(self, connection: EngineConnection) -> None:
        self._connections.append(connection)
        self._balancer.add(connection.session)
        for fd in connection.fds:
            self._epoll.register(fd, select.EPOLLIN)

    def _advance(self) -> None:
        now_ns = time.monotonic_ns()
        self._receive(now_ns)
        self._check_when_due(now_ns)
        self._send(now_ns)
        self._more = self._receive(now_ns)  # sending may have taken the descriptor's signal

    def _receive(self, now_ns: int) -> bool:
        return any([connection.receive(now_ns) for connection in self._connections])

    def _send(self, now_ns: int) -> None:
        self._balancer.assign(now_ns)
        for connection in self._connections:
            connection.send_due(now_ns)

    def _check_when_due(self, now_ns: int) -> None:
        """Check the engines once an interval. Time without a driver is no silence: at most one interval counts."""
        if (since_ns := now_ns - self._checked_ns) < CHECK_EVERY_NS:
            return
        self._checked_ns = now_ns
        for connection in list(self._connections):
            try:
                connection.check(min(since_ns, CHECK_EVERY_NS))
            except EngineError as error:
                self._lose(connection, error)

    def _lose(self, connection: EngineConnection, error: EngineError) -> None:
        self._connections.remove(connection)
        if self._connections:
            text = "an engine of the group has ended (%s: %s); its %d open requests go on at the others"
            logging.getLogger(__name__).warning(text, error.where, error.what, connection.session.open_count)
        else:
            self.failure = error
        for fd in connection.fds:
            self._epoll.unregister(fd)
        connection.close()
        self._balancer.lose(connection.session, error)
