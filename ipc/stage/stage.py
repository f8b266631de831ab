"""The shell of every stage: its links, its supervisor, its statistics, in one poll.

    def main(stage: Stage) -> None:
        stage.ready({"slots": 64})
        while stage.running:
            for event in stage.poll(1000):
                match event:
                    case PeerJoined("compute"): ...
                    case Received("compute", Need() as need): stage.send("compute", Filled(...))
            if stage.publish_due:
                stage.publish(done=…)

`entry.run_stage(main)` makes a process of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import zmq

from ...errors import ExpertFlowError
from ..messages import Drain, ErrorFacts, Failed, Message, Peer, PeerDied, Progress, Published, Ready, Span, StageStats
from ..messages.control import TO_STAGE, ToStage
from ..shared.memory import Arena
from ..transport.addresses import CONTROL, Party, socket_address
from ..transport.link import Link
from ..transport.sockets import Context, Socket
from .events import PeerJoined, PeerLost, Readable, Received, StageEvent, Stopping
from .spec import StageSpec
from .wiring import decoders_of

T = TypeVar("T")

PUBLISH_EVERY_NS = 1_000_000_000
SPANS_AT_ONCE = 2000
FAREWELL_MS = 2000
"""How long a stage that ends waits for its last words to be taken."""


class Stage:
    """One start of a stage, seen from inside. A context manager; single-threaded."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.config = spec.config
        self.context: Context = zmq.Context()
        self.running = True
        self._me = Party(spec.stage, spec.epoch)
        self._poller = zmq.Poller()
        self._control: Link[ToStage] = Link.connect(
            self.context, socket_address(spec.run_dir, CONTROL), TO_STAGE, self._me.identity
        )
        self._woken_fd, self.wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._control.socket, zmq.POLLIN)
        self._poller.register(self._woken_fd, zmq.POLLIN)
        self._decoders = decoders_of(spec.stage)
        self._links: dict[str, Link[Any]] = {}
        self._peers: dict[str, Party] = {}
        self._watched: dict[Socket | int, str] = {}
        self._arenas: dict[str, Arena] = {}
        self._stop_requests: list[Stopping] = []
        self._started_ns = time.monotonic_ns()
        self._waited_ns = 0
        self._sent = 0
        self._published_ns = 0
        self._spans: list[Span] = []
        self._rejected = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # What it was given

    def arena(self, name: str) -> Arena:
        """The shared memory `slots` or `host` (see `StageSpec.memory`)."""
        if name not in self._arenas:
            given = self.spec.memory[name]
            self._arenas[name] = Arena.attach(given.fd, given.size_bytes)
        return self._arenas[name]

    def survey(self, kind: type[T]) -> T:
        """The checkpoint's survey: `stage.survey(Survey)`."""
        return msgspec.msgpack.decode(Path(self.spec.survey_path).read_bytes(), type=kind)

    # Talking to peers

    def poll(self, timeout_ms: int = 1000) -> list[StageEvent]:
        """Wait for something, at most `timeout_ms`, and return all that has come, the supervisor's words first."""
        before_ns = time.monotonic_ns()
        ready = dict(self._poller.poll(timeout_ms))
        self._waited_ns += time.monotonic_ns() - before_ns
        if self._woken_fd in ready:
            os.read(self._woken_fd, 4096)
        links = list(self._links.items())
        events = self._obey(self._control.receive()) if self._control.socket in ready else []
        for name, link in links:
            if link.socket in ready and not link.socket.closed:
                events += [Received(name, message) for message in link.receive()]
        events += [Readable(name) for source, name in self._watched.items() if source in ready]
        stops, self._stop_requests = self._stop_requests, []
        return events + stops

    def receive(self, peer: str) -> list[Any]:
        """What a peer has sent, without a poll of everything else: for a stage that looks in while it works."""
        return self._links[peer].receive() if peer in self._links else []

    def send(self, peer: str, message: Message) -> None:
        """Send to a peer stage; never blocks. Nobody hears it while that stage is down: its successor starts afresh."""
        if peer in self._links:
            self._sent += 1
            self._links[peer].send(message)

    def watch(self, name: str, source: Socket | int) -> None:
        """Let `poll` return `Readable(name)` whenever this socket or descriptor can be read."""
        self._watched[source] = name
        self._poller.register(source, zmq.POLLIN)

    def unwatch(self, source: Socket | int) -> None:
        del self._watched[source]
        self._poller.unregister(source)

    def stop(self, gently: bool) -> None:
        """Ask this stage to end; safe in a signal handler. `poll` returns `Stopping`."""
        self.running = False
        self._stop_requests.append(Stopping(gently))

    # Talking to the supervisor

    def ready(self, facts: dict[str, int | float | str] | None = None) -> None:
        """Say that this stage can work; `facts` reach its peers (`PeerJoined.facts`) and the user."""
        self._control.send(Ready(self.spec.stage, self.spec.epoch, facts or {}))

    def progress(self, what: str, done: int, total: int) -> None:
        """Report on something that takes over two seconds."""
        self._control.send(Progress(self.spec.stage, what, done, total))

    def fail(self, error: ExpertFlowError) -> None:
        """Give the reason why this stage is about to end."""
        facts = ErrorFacts.of(error)
        where = facts.where or f"stage {self.spec.stage}"
        self._control.send(Failed(self.spec.stage, msgspec.structs.replace(facts, where=where)))

    @property
    def publish_due(self) -> bool:
        """Whether a second has passed, or many spans have gathered, since the last `publish`."""
        return time.monotonic_ns() - self._published_ns > PUBLISH_EVERY_NS or len(self._spans) > SPANS_AT_ONCE

    def publish(
        self, *, done: int = 0, queue: int = 0, waiting_on: str = "", counters: dict[str, int | float] | None = None
    ) -> None:
        """Publish statistics, and the spans gathered. Busy is all time not spent in `poll`."""
        self._published_ns = now_ns = time.monotonic_ns()
        stats = StageStats(
            stage=self.spec.stage,
            pid=os.getpid(),
            epoch=self.spec.epoch,
            time_ns=now_ns,
            busy_ns=now_ns - self._started_ns - self._waited_ns,
            done=done,
            queue=queue,
            waiting_on=waiting_on,
            counters={**(counters or {}), "sent": self._sent, "rejected": self.rejected},
        )
        spans, self._spans = self._spans, []
        self._control.send(Published(stats, spans))

    @property
    def draws(self) -> bool:
        """Whether a timeline is drawn."""
        return bool(self.config.timeline)

    @contextmanager
    def span(self, name: str, lane: int = 0, **detail: int | str) -> Iterator[None]:
        """Put what happens inside on the timeline, if one is drawn."""
        start_ns = time.monotonic_ns()
        yield
        self.add_span(name, start_ns, time.monotonic_ns(), lane, detail)

    def add_span(
        self, name: str, start_ns: int, end_ns: int, lane: int = 0, detail: dict[str, int | str] | None = None
    ) -> None:
        """Put something on the timeline, if one is drawn; times are `time.monotonic_ns`."""
        if self.draws:
            self._spans.append(Span(name, start_ns, end_ns, lane, detail or {}))

    @property
    def rejected(self) -> int:
        """Messages dropped because they could not be read or came from a stranger."""
        return self._rejected + self._control.rejected + sum(link.rejected for link in self._links.values())

    def close(self) -> None:
        """Close everything; last words to the supervisor get a moment to be taken. Does nothing twice."""
        if self.context.closed:
            return
        for link in self._links.values():
            link.close()
        self._control.close(linger_ms=FAREWELL_MS)
        self.context.destroy(linger=None)
        for arena in self._arenas.values():
            arena.close()
        os.close(self.wake_fd)
        os.close(self._woken_fd)

    def _obey(self, orders: list[ToStage]) -> list[StageEvent]:
        events: list[StageEvent] = []
        for order in orders:
            if isinstance(order, Drain):
                self.stop(gently=True)
            elif isinstance(order, PeerDied):
                events += self._lose(order)
            elif self._join(order):
                events.append(PeerJoined(order.stage, order.epoch, order.facts))
        return events

    def _join(self, order: Peer) -> bool:
        """Open a fresh link to a peer of a new epoch; what its predecessor still had to say is not heard (R8)."""
        known = self._peers.get(order.stage)
        if order.stage not in self._decoders or (known and known.epoch >= order.epoch):
            return False
        self._leave(order.stage)
        peer = self._peers[order.stage] = Party(order.stage, order.epoch)
        link = Link.pair(self.context, self.spec.run_dir, self._me, peer, self._decoders[order.stage])
        self._links[order.stage] = link
        self._poller.register(link.socket, zmq.POLLIN)
        return True

    def _lose(self, order: PeerDied) -> list[StageEvent]:
        """Hear the last words of a peer that has died, and close the link to it."""
        link = self._links.get(order.stage)
        if link is None or self._peers[order.stage].epoch != order.epoch:
            return []
        last_words = [Received(order.stage, message) for message in link.receive()]
        self._leave(order.stage)
        return [*last_words, PeerLost(order.stage, order.epoch)]

    def _leave(self, stage: str) -> None:
        link = self._links.pop(stage, None)
        if link:
            self._rejected += link.rejected
            self._poller.unregister(link.socket)
            link.close()
