"""The shell of every stage: its links, its supervisor, its statistics, in one poll.

    def main(stage: Stage) -> None:
        stage.ready({"slots": 64})
        while stage.running:
            for event in stage.poll(1000):
                match event:
                    case PeerJoined("compute"): ...
                    case Received("compute", Miss() as miss): stage.send("compute", Filled(...))
            if stage.publish_due:
                stage.publish(done=…)

`entry.run_stage(main)` makes a process of it.
"""

from __future__ import annotations

import logging
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
from ..messages import (
    CacheHeat,
    CloseIntake,
    Drain,
    ErrorFacts,
    Failed,
    HistogramCounts,
    Message,
    OpenRequests,
    Peer,
    PeerDied,
    Progress,
    Published,
    Ready,
    Span,
    StageStats,
    Watched,
)
from ..messages.control import TO_STAGE, ToStage
from ..shared.memory import Arena
from ..transport.addresses import CONTROL, Party, socket_address
from ..transport.link import Link
from ..transport.sockets import Context, Socket
from .events import IntakeClosed, PeerJoined, PeerLost, Readable, Received, StageEvent, Stopping
from .span_quota import quota_of
from .startup import StageSpec
from .wiring import decoders_of

T = TypeVar("T")

PUBLISH_EVERY_NS = 1_000_000_000
MAX_SPANS = 2000
LINGER_MS = 2000
"""Milliseconds that a stage waits at its end until the supervisor has taken its last messages."""


class Stage:
    """One start of a stage, seen from inside. A context manager; single-threaded."""

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec
        self.config = spec.config
        self.context: Context = zmq.Context()
        self.running = True
        self.watched = False
        """True while somebody watches: then this stage reports more than statistics."""
        self._party = Party(spec.stage, spec.epoch)
        self._poller = zmq.Poller()
        self._control: Link[ToStage] = Link.connect(
            self.context, socket_address(spec.run_dir, CONTROL), TO_STAGE, self._party.identity
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
        self._deferred: list[ToStage] = []
        """Messages of the supervisor behind a `PeerDied`, for the next `poll`."""
        self._started_ns = time.monotonic_ns()
        self._waited_ns = 0
        self._sent = 0
        self._published_ns = 0
        self._spans: list[Span] = []
        self._quota = quota_of(spec.stage)
        self._rejected = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    # Memory and survey

    def arena(self, name: str) -> Arena:
        """Return the shared memory `slots` or `host` (see `StageSpec.memory`)."""
        if name not in self._arenas:
            memory = self.spec.memory[name]
            self._arenas[name] = Arena.attach(memory.fd, memory.size_bytes)
        return self._arenas[name]

    def survey(self, cls: type[T]) -> T:
        """Return the survey of the checkpoint: `stage.survey(Survey)`."""
        return msgspec.msgpack.decode(Path(self.spec.survey_path).read_bytes(), type=cls)

    # Messages of peers

    def poll(self, timeout_ms: int = 1000) -> list[StageEvent]:
        """Wait for events, at most `timeout_ms`, and return all of them, those of the supervisor first.

        What follows a `PeerLost` comes with the next call: an answer to the last messages of a dead peer must not go to
        its successor.
        """
        before_ns = time.monotonic_ns()
        ready = dict(self._poller.poll(0 if self._deferred else timeout_ms))
        self._waited_ns += time.monotonic_ns() - before_ns
        if self._woken_fd in ready:
            os.read(self._woken_fd, 4096)
        links = list(self._links.items())
        events = self._on_control(self._control.receive() if self._control.socket in ready else [])
        for name, link in links:
            if link.socket in ready and not link.socket.closed:
                events += [Received(name, message) for message in link.receive()]
        events += [Readable(name) for source, name in self._watched.items() if source in ready]
        stops, self._stop_requests = self._stop_requests, []
        return events + stops

    def receive(self, peer: str) -> list[Any]:
        """Return the messages of one peer without polling the others: for use in the middle of a step."""
        return self._links[peer].receive() if peer in self._links else []

    def send(self, peer: str, message: Message) -> None:
        """Send to a peer stage; never blocks. Dropped while the peer is down: a new epoch starts with an empty link."""
        if peer in self._links:
            self._sent += 1
            self._links[peer].send(message)

    def watch(self, name: str, source: Socket | int) -> None:
        """Let `poll` return `Readable(name)` whenever this socket or descriptor can be read."""
        self._watched[source] = name
        self._poller.register(source, zmq.POLLIN)

    def stop(self, gently: bool) -> None:
        """Ask this stage to end; safe in a signal handler. `poll` returns `Stopping`."""
        self.running = False
        self._stop_requests.append(Stopping(gently))

    # Messages to the supervisor

    def ready(self, facts: dict[str, int | float | str] | None = None) -> None:
        """Report that this stage can work; `facts` go to its peers (`PeerJoined.facts`) and the user."""
        words = ", ".join(f"{name} {value}" for name, value in (facts or {}).items() if value != "")
        logging.getLogger(__name__).info("ready%s", f": {words}" if words else "")
        self._control.send(Ready(self.spec.stage, self.spec.epoch, facts or {}))

    def progress(self, what: str, done: int, total: int) -> None:
        """Report the progress of work that takes over two seconds."""
        self._control.send(Progress(self.spec.stage, what, done, total))

    def fail(self, error: ExpertFlowError) -> None:
        """Send the error with which this stage is about to end."""
        facts = ErrorFacts.of(error)
        where = facts.where or f"stage {self.spec.stage}"
        self._control.send(Failed(self.spec.stage, msgspec.structs.replace(facts, where=where)))

    @property
    def waited_ns(self) -> int:
        """Return the time spent in `poll`."""
        return self._waited_ns

    @property
    def publish_due(self) -> bool:
        """Return whether a second has passed or `MAX_SPANS` were added since the last `publish`."""
        return time.monotonic_ns() - self._published_ns > PUBLISH_EVERY_NS or len(self._spans) > MAX_SPANS

    def publish(
        self,
        *,
        done: int = 0,
        queue: int = 0,
        waiting_on: str = "",
        stalled_ns: int = 0,
        counters: dict[str, int | float] | None = None,
        histograms: dict[str, HistogramCounts] | None = None,
    ) -> None:
        """Publish statistics and the spans since the last `publish`. All time outside `poll` counts as busy.

        Raises LinkCut if the connection to a living peer has broken since.
        """
        for link in self._links.values():
            link.require_whole()
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
            stalled_ns=stalled_ns,
            histograms=histograms or {},
            counters={**(counters or {}), "sent": self._sent, "rejected": self.rejected},
        )
        spans, self._spans = self._spans, []
        self._control.send(Published(stats, spans))

    def report(self, activity: CacheHeat | OpenRequests) -> None:
        """Report what this stage does now; only while it is `watched`."""
        self._control.send(activity)

    @property
    def draws(self) -> bool:
        """Return whether spans are wanted now: a timeline is drawn, or somebody watches and the quota lasts."""
        return bool(self.config.timeline) or (self.watched and self._quota.is_open(time.monotonic_ns()))

    @contextmanager
    def span(self, name: str, lane: int = 0, **detail: int | str) -> Iterator[None]:
        """Add the time spent inside as a span, if spans are wanted."""
        start_ns = time.monotonic_ns()
        yield
        self.add_span(name, start_ns, time.monotonic_ns(), lane, detail)

    def add_span(
        self, name: str, start_ns: int, end_ns: int, lane: int = 0, detail: dict[str, int | str] | None = None
    ) -> None:
        """Add a span if spans are wanted (`draws`); times are `time.monotonic_ns`."""
        if self.draws:
            self._quota.take()
            self._spans.append(Span(name, start_ns, end_ns, lane, detail or {}))

    @property
    def rejected(self) -> int:
        """Return the number of messages dropped as unreadable or as not from a peer."""
        return self._rejected + self._control.rejected + sum(link.rejected for link in self._links.values())

    def close(self) -> None:
        """Close everything; the last messages to the supervisor get `LINGER_MS`. Does nothing the second time."""
        if self.context.closed:
            return
        for link in self._links.values():
            link.close()
        self._control.close(linger_ms=LINGER_MS)
        self.context.destroy(linger=None)
        for arena in self._arenas.values():
            arena.close()
        os.close(self.wake_fd)
        os.close(self._woken_fd)

    def _on_control(self, messages: list[ToStage]) -> list[StageEvent]:
        events: list[StageEvent] = []
        waiting, self._deferred = [*self._deferred, *messages], []
        for place, message in enumerate(waiting, 1):
            if isinstance(message, Drain):
                self.stop(gently=True)
            elif isinstance(message, Watched):
                self.watched = message.on
            elif isinstance(message, CloseIntake):
                events.append(IntakeClosed())
            elif isinstance(message, PeerDied):
                if events := [*events, *self._on_peer_died(message)]:
                    self._deferred = waiting[place:]
                    break
            elif self._open_link(message):
                events.append(PeerJoined(message.stage, message.epoch, message.facts))
        return events

    def _open_link(self, peer: Peer) -> bool:
        """Open a new link to a peer of a new epoch; unread messages of its predecessor are dropped (R8)."""
        previous = self._peers.get(peer.stage)
        if peer.stage not in self._decoders or (previous and previous.epoch >= peer.epoch):
            return False
        self._close_link(peer.stage)
        party = self._peers[peer.stage] = Party(peer.stage, peer.epoch)
        link = Link.pair(self.context, self.spec.run_dir, self._party, party, self._decoders[peer.stage])
        self._links[peer.stage] = link
        self._poller.register(link.socket, zmq.POLLIN)
        return True

    def _on_peer_died(self, death: PeerDied) -> list[StageEvent]:
        """Receive the last messages of a dead peer, then close the link to it."""
        link = self._links.get(death.stage)
        if link is None or self._peers[death.stage].epoch != death.epoch:
            return []
        last = [Received(death.stage, message) for message in link.receive()]
        self._close_link(death.stage)
        return [*last, PeerLost(death.stage, death.epoch)]

    def _close_link(self, stage: str) -> None:
        link = self._links.pop(stage, None)
        if link:
            self._rejected += link.rejected
            self._poller.unregister(link.socket)
            link.close()
