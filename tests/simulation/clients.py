"""Simulated clients: the real pool, connection and session over simulated sockets, and a book of what each received."""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

import zmq
from expertflow.errors import EngineError
from expertflow.ipc.messages import Finished, Hello, Message, Tokens
from expertflow.ipc.messages.to_client import TO_CLIENT
from expertflow.ipc.messages.to_scheduler import FROM_CLIENT
from expertflow.ipc.transport.handshakes import Handshakes
from expertflow.runtime.client.address import LocalRoute
from expertflow.runtime.client.balancer import RequestBalancer
from expertflow.runtime.client.connection import EngineConnection
from expertflow.runtime.client.pool import EnginePool
from expertflow.runtime.client.request import BatchUpdates, ClientRequest
from expertflow.runtime.client.session import EngineSession
from expertflow.tests.scheduler.fake_compute import continuation
from expertflow.tests.simulation.agenda import Pending, require
from expertflow.tests.simulation.current import CURRENT
from expertflow.tests.simulation.plan import CONTEXT, EOS, PlannedRequest
from expertflow.tests.simulation.wires import ENCODER, ClientRouter, SimulatedSocket, Wire

CONNECT_US = (100, 20_000)
WAKE_US = (5, 300)
_EVENT = struct.Struct("=HI")


class SimulatedRoute(LocalRoute):
    """The way to the engine, whose end the lock on its run directory would show."""

    def require_alive(self) -> None:
        if CURRENT.world.engine_ended:
            raise EngineError("the engine has ended", self.address, "")


class Monitor:
    """Stands for the monitor of a socket: a message for every handshake."""

    def __init__(self) -> None:
        self.handshakes = 0

    def getsockopt(self, option: int) -> int:
        return zmq.POLLIN * bool(self.handshakes)

    def recv_multipart(self) -> list[bytes]:
        self.handshakes -= 1
        return [_EVENT.pack(zmq.EVENT_HANDSHAKE_SUCCEEDED, 0)]


class SimulatedHandshakes(Handshakes):
    """The real count of handshakes over a simulated monitor."""

    def __init__(self, monitor: Monitor) -> None:  # the real one watches a socket
        self.refused = False
        self._monitor = monitor  # type: ignore[assignment]
        self._connected_before = False

    def close(self) -> None: ...


class ClientSocket:
    """A client's DEALER, seen as a `Link`. It connects, and connects again, by itself."""

    def __init__(self, client: Client) -> None:
        self.rejected = 0
        self.monitor = Monitor()
        self.arrived: deque[Any] = deque()
        self.socket = SimulatedSocket(self.arrived)
        self._client = client
        self._outbox: deque[bytes] = deque()
        """Not written to a connection yet."""
        self._connections = 0
        self._router: ClientRouter | None = None
        self._up: Wire | None = None
        self._down: Wire | None = None
        self._connecting: Pending | None = None

    def send(self, message: Message) -> None:
        self._outbox.append(ENCODER.encode(message))
        self._write()

    def receive(self, limit: int = 1000) -> list[Any]:
        messages = list(self.arrived)
        self.arrived.clear()
        for message in messages:
            self._client.check(message)
        return messages

    def close(self, linger_ms: int = 0) -> None: ...

    def seek(self) -> None:
        """Try to connect."""
        if self._up is None and self._connecting is None:
            name = f"client {self._client.name} connects"
            self._connecting = CURRENT.world.agenda.after(name, self._connect, *CONNECT_US)

    def cut(self, draw: int, reconnects: bool = True) -> None:
        """Lose the connection: of what was written some arrives, and what was not goes to the next connection."""
        if self._up is None or self._down is None:
            return
        under_way = len(self._up.under_way)
        lost = self._up.keep(draw % (under_way + 1))
        if draw & 1:  # the last ones had not been written
            self._outbox.extendleft(reversed(lost[len(lost) // 2 :]))
        self._down.keep(draw // 7 % (len(self._down.under_way) + 1))
        if self._router is not None:
            self._router.wires.pop(self._identity, None)
        self._up = self._down = self._router = None
        if reconnects:
            self.seek()

    def lose_router(self, draw: int, answers_arrive: bool) -> None:
        """Lose the connection since the scheduler has ended; what has arrived there is lost, too."""
        up, down = self._up, self._down
        if up is not None and down is not None:
            answers = len(down.under_way)
            self.cut(7 * answers + draw % 2 if answers_arrive else draw, reconnects=False)
            up.close()

    @property
    def _identity(self) -> bytes:
        return f"{self._client.name}{self._connections}".encode()

    def _connect(self) -> Any:
        self._connecting = None
        router = CURRENT.world.router
        if router is None or self._client.gone:
            return "not: there is nobody"
        self._connections += 1
        identity = self._identity
        ends = (f"client {self._client.name}", f"scheduler.{CURRENT.world.epoch('scheduler')}")
        self._router = router
        self._up = UpWire("→".join(ends), router, identity)
        self._down = Wire("→".join(ends[::-1]), TO_CLIENT.decode, self._client.wake)
        self._down.arrived = self.arrived
        router.wires[identity] = self._down
        self.monitor.handshakes += 1
        self._write()
        self._client.wake()
        return f"as {identity.decode()}"

    def _write(self) -> None:
        while self._up is not None and self._outbox:
            self._up.carry(self._outbox.popleft())


class UpWire(Wire):
    """From a client to the scheduler's router, which keeps the bytes as they are."""

    def __init__(self, name: str, router: ClientRouter, identity: bytes) -> None:
        super().__init__(name, FROM_CLIENT.decode, lambda: None)
        self._router, self._identity = router, identity

    def _deliver(self) -> Any:
        if not self.under_way:
            return "nothing: it was lost"
        data = self.under_way.popleft()
        self._router.socket.arrived.append((self._identity, data))
        CURRENT.world.wake_stage("scheduler")
        return FROM_CLIENT.decode(data)


class SimulatedConnection(EngineConnection):
    """The real connection over a simulated socket."""

    def __init__(self, client: Client) -> None:  # the real one opens sockets
        self.route = SimulatedRoute("run")
        self.session = EngineSession(origin=client.name)
        self.welcome = None
        self._window = 256
        self._answer_timeout_ns = 3600 * 10**9
        self._link = client.socket  # type: ignore[assignment]
        self._handshakes = SimulatedHandshakes(client.socket.monitor)
        self._refusal = None
        self._heard = False
        self._silent_ns = self._hello_at_ns = 0
        self._link.send(Hello())

    @property
    def fds(self) -> Any:
        return ()


class SimulatedPool(EnginePool):
    """The real pool with one simulated connection."""

    def __init__(self, client: Client) -> None:  # the real one opens sockets
        self.failure = None
        self._is_group = False
        self._connections = []
        self._balancer = RequestBalancer()
        self._checked_ns = CURRENT.world.agenda.now_us * 1000
        self._more = False
        self.connection = SimulatedConnection(client)
        self._add(self.connection)


class CountedRequest(ClientRequest):
    """A request that objects to a second end, and to tokens that are not its own (I4)."""

    __slots__ = ("ends", "planned", "was_cancelled")
    ends: int
    planned: PlannedRequest
    was_cancelled: bool

    def expected(self) -> list[int]:
        """Return the tokens of an undisturbed run."""
        submit = self.submit
        most = min(submit.max_new_tokens, CONTEXT - len(submit.prompt_ids) + 1)
        tokens = continuation(submit.prompt_ids, most, submit.sampling)
        first_stop = next((i + 1 for i, token in enumerate(tokens) if token == EOS), len(tokens))
        return tokens[:first_stop]

    def notify(self) -> None:
        super().notify()
        if self.ended:
            self.ends += 1
            require(self.ends == 1, "I4", f"{self.submit.request_id} has ended {self.ends} times")
            self._check_end()

    def _check_end(self) -> None:
        name, expected = self.submit.request_id, self.expected()
        what = f"{name} has the tokens {self.tokens}, not {expected}"
        require(self.tokens == expected[: len(self.tokens)], "I4", what)
        if self.error is not None:
            CURRENT.world.check_error(name, self.error)
        elif self.finish_reason == "cancelled":
            require(self.was_cancelled, "I4", f"{name} ended as cancelled, and nobody had cancelled it")
        elif self.finish_reason == "deadline":
            require(self.deadline_ns is not None, "I4", f"{name} ended at a deadline that it has not")
        else:
            what = f"{name} ended by {self.finish_reason} with {self.tokens}, not {expected}"
            require(self.tokens == expected, "I4", what)


class Client:
    """One client process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gone = False
        self.requests: dict[str, CountedRequest] = {}
        self.socket = ClientSocket(self)
        self.pool = SimulatedPool(self)
        self._updates = BatchUpdates()
        self._wake: Pending | None = None

    def wake(self) -> None:
        """Let it receive and send soon."""
        self._wake_at(CURRENT.world.agenda.after(f"client {self.name} wakes", self._drive, *WAKE_US))

    def submit(self, planned: PlannedRequest) -> Any:
        if self.gone:
            return "nothing: it has gone"
        request = CountedRequest(len(self.requests), planned.submit(), self._updates)
        request.ends, request.planned, request.was_cancelled = 0, planned, False
        self.requests[planned.name] = request
        if self.pool.failure is not None:
            request.fail(self.pool.failure)
            return "too late: the engine has ended"
        self.pool.submit([request])
        self._schedule()
        return planned

    def cancel(self, name: str) -> Any:
        request = self.requests.get(name)
        if request is None or self.gone or self.pool.failure is not None:
            return "nothing"
        request.was_cancelled = True
        self.pool.cancel([request])
        self._schedule()
        return None

    def vanish(self, draw: int) -> None:
        """Die without a word."""
        self.gone = True
        self.socket.cut(draw, reconnects=False)

    def check(self, message: Any) -> None:
        """Check that tokens are those of an undisturbed run, wherever they begin."""
        request = self.requests.get(getattr(message, "request_id", ""))
        if isinstance(message, Tokens | Finished) and request is not None:
            offset = message.offset if isinstance(message, Tokens) else 0
            expected, ids = request.expected(), message.token_ids
            what = f"{message.request_id} was sent {ids} from {offset}, of {expected}"
            require(ids == expected[offset : offset + len(ids)], "I4", what)
            whole = isinstance(message, Finished) and message.finish_reason in ("stop", "length")
            require(not whole or ids == expected, "I4", f"an end too early: {what}")

    @property
    def open(self) -> list[str]:
        """Return the requests that have not ended."""
        return [] if self.gone else [name for name, request in self.requests.items() if not request.ended]

    def _drive(self) -> Any:
        self._wake = None
        if self.gone:
            return "nothing: it has gone"
        if self.pool.failure is None:
            self.pool.on_readable()
        self._schedule()
        return None

    def _schedule(self) -> None:
        due_ns = self.pool.next_deadline() if self.pool.failure is None else None
        if due_ns is not None:
            name, agenda = f"client {self.name} wakes", CURRENT.world.agenda
            self._wake_at(agenda.at(name, self._drive, max(due_ns // 1000 + 1, agenda.now_us)))

    def _wake_at(self, pending: Pending) -> None:
        """Keep the earlier of two wakes."""
        if self._wake is not None and not self._wake.cancelled:
            earlier, later = sorted((self._wake, pending), key=lambda each: each.due_us)
            later.cancelled, pending = True, earlier
        self._wake = pending
