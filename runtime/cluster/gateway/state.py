"""The gateway's core: requests of clients in, messages to replicas and clients out. Pure: no socket, no clock.

Every request ends in exactly one `Finished` or `Refused`, whichever replicas die. A request whose replica is lost goes
on at another one, ahead of those that have not started, with the tokens that its client has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import count

from ....errors import BusyError, EngineError, ExpertFlowError
from ....ipc.messages import Accepted, Cancel, Finished, FromClient, Hello, Refused, Submit, ToClient, Tokens, Welcome
from ....ipc.messages.base import ErrorFacts
from ..routing.router import MAX_PASSED, Router
from .book import StreamBook
from .events import (
    ClientGone,
    FromFront,
    FromReplica,
    GatewayAction,
    GatewayEvent,
    ReplicaDraining,
    ReplicaJoined,
    ReplicaLost,
    SendToClient,
    SendToReplica,
    StatePublished,
    Tick,
)
from .facts import combine_facts
from .refusals import refusal_of
from .stream import Stream

REQUESTS_AHEAD = 2
"""Requests that a replica gets for each that it runs at once: it is never idle, and most are placed late."""
LEARN_EVERY = 4
"""One request in so many tells its routing. Such a request shares no prefix: every position of it is computed."""
LEARN_FIRST = 64
"""First requests, each of which tells its routing."""
DEFAULT_QUEUE_LIMIT = 4096
PAUSE_NS = 200_000_000
"""Time for which a replica that is too busy gets nothing."""


class Gateway:
    """All requests of all clients, and all replicas."""

    def __init__(
        self,
        router: Router,
        *,
        prefix: str = "",
        queue_limit: int = DEFAULT_QUEUE_LIMIT,
        learn_every: int = LEARN_EVERY,
    ) -> None:
        """Begin without replicas. `learn_every` 0: learn from no request.

        `prefix` begins the ids of requests at replicas. An engine knows requests by their ids alone, so of several
        gateways each needs its own, and a new one at every start.
        """
        self._prefix = prefix
        self.router = router
        self.moved = 0
        """Number of times that a request went on at another replica, or at the same one after its scheduler died."""
        self.book = StreamBook()
        self._queue_limit, self._learn_every = queue_limit, learn_every
        self._facts: dict[str, Welcome] = {}
        self._cluster_facts: Welcome | None = None
        self._greeted_later: OrderedDict[bytes, None] = OrderedDict()
        self._placed: dict[str, dict[str, Stream]] = {}
        """Replica -> id there -> request."""
        self._paused: dict[str, int] = {}
        """Busy replica -> when it gets requests again (monotonic ns)."""
        self._numbers = count()
        self._now_ns = 0

    def queue_age_ns(self, now_ns: int) -> int:
        """Return for how long the request has waited that waits longest for its first start."""
        return now_ns - (self.book.waiting.oldest_ns or now_ns)

    def handle(self, event: GatewayEvent, now_ns: int) -> list[GatewayAction]:
        """Apply an event that happened at `now_ns` (monotonic); return what is to be sent, in this order."""
        return self.handle_all([event], now_ns)

    def handle_all(self, events: Iterable[GatewayEvent], now_ns: int) -> list[GatewayAction]:
        """Apply all events before requests are placed: the best of those that come together goes to each replica."""
        self._now_ns = now_ns
        return [*(action for event in events for action in self._apply(event)), *self._place()]

    def _apply(self, event: GatewayEvent) -> list[GatewayAction]:
        match event:
            case FromFront(identity, message):
                return self._on_client(identity, message)
            case ClientGone(identity):
                return self._drop_client(identity)
            case ReplicaJoined(name, facts):
                return self._join(name, facts)
            case ReplicaLost(name):
                return self._lose(name)
            case ReplicaDraining(name):
                return self._drain(name)
            case FromReplica(name, message):
                return self._on_replica(name, message)
            case StatePublished(name, state):
                self.router.publish(name, state)
                return []
            case Tick():
                return self._tick()

    # Clients

    def _on_client(self, identity: bytes, message: FromClient) -> list[GatewayAction]:
        match message:
            case Hello():
                return self._greet(identity)
            case Submit():
                return self._submit(identity, message)
            case Cancel(request_id):
                return self._cancel(request_id)

    def _greet(self, identity: bytes) -> list[GatewayAction]:
        """Tell the facts of the model; before the first replica, later."""
        if self._cluster_facts is None:
            self._greeted_later[identity] = None
            return []
        return [SendToClient(identity, self._cluster_facts)]

    def _submit(self, identity: bytes, submit: Submit) -> list[GatewayAction]:
        request_id = submit.request_id
        accepted = SendToClient(identity, Accepted(request_id))
        if (stream := self.book.open.get(request_id)) is not None:
            return [] if submit.is_late(*stream.sent) else [accepted, *self._repeat(stream, identity, submit)]
        if (end := self.book.find_end(request_id)) is not None:
            return [accepted, SendToClient(identity, end)]
        if (error := refusal_of(submit, len(self.book.waiting), self._queue_limit)) is not None:
            return [SendToClient(identity, Refused(request_id, ErrorFacts.of(error)))]
        self.book.add(self._stream(identity, submit))
        return [accepted]

    def _stream(self, identity: bytes, submit: Submit) -> Stream:
        number = next(self._numbers)
        return Stream(
            number=number,
            identity=identity,
            submit=submit,
            sent=(submit.origin, submit.attempt),
            accepted_ns=self._now_ns,
            job=self.router.job(submit.prompt_ids, submit.domain),
            prefix=self._prefix,
            learns=self._learn_every > 0 and (number < LEARN_FIRST or number % self._learn_every == 0),
            priority=submit.priority,
            delivered=list(submit.resume_ids),
        )

    def _repeat(self, stream: Stream, identity: bytes, submit: Submit) -> list[GatewayAction]:
        """Send what a client that has reconnected may have missed."""
        stream.identity, stream.sent = identity, (submit.origin, submit.attempt)
        if stream.replica is None:
            self.book.waiting.follow(stream)
        tokens = Tokens(stream.submit.request_id, 0, list(stream.delivered))
        return [SendToClient(identity, tokens)] if stream.delivered else []

    def _cancel(self, request_id: str) -> list[GatewayAction]:
        stream = self.book.open.get(request_id)
        if stream is None or stream.cancelled:
            return []
        stream.cancelled = True
        if stream.replica is not None:
            return [SendToReplica(stream.replica, Cancel(stream.id_at_replica))]
        return [*self.book.end(stream, stream.end_here("cancelled", self._now_ns))]

    def _drop_client(self, identity: bytes) -> list[GatewayAction]:
        """End the requests of a client that has gone, without a word."""
        self._greeted_later.pop(identity, None)
        streams = self.book.streams_of(identity)
        actions: list[GatewayAction] = [
            SendToReplica(stream.replica, Cancel(stream.id_at_replica)) for stream in streams if stream.replica
        ]
        for stream in streams:
            self._unplace(stream)
            self.book.remove(stream)
        return actions

    # Replicas

    def _join(self, name: str, facts: Welcome) -> list[GatewayAction]:
        lost = self._lose(name) if name in self._facts else []
        self._facts[name], self._placed[name] = facts, {}
        self.router.fleet.add(name, REQUESTS_AHEAD * facts.batch_size)
        self._cluster_facts = cluster = combine_facts(list(self._facts.values()), self._queue_limit)
        greeted, self._greeted_later = self._greeted_later, OrderedDict()
        return [*lost, *(SendToClient(identity, cluster) for identity in greeted)]

    def _lose(self, name: str) -> list[GatewayAction]:
        streams = list(self._placed.pop(name, {}).values())
        self._facts.pop(name, None)
        self._paused.pop(name, None)
        self.router.fleet.remove(name)
        for stream in streams:
            stream.losses += 1
        return self._put_back(streams)

    def _drain(self, name: str) -> list[GatewayAction]:
        """Cancel the requests of a replica there, and let them go on elsewhere."""
        if name not in self.router.fleet:
            return []
        self.router.fleet.close(name)
        self._paused.pop(name, None)
        streams = list(self._placed[name].values())
        cancels: list[GatewayAction] = [SendToReplica(name, Cancel(stream.id_at_replica)) for stream in streams]
        for stream in streams:
            self._unplace(stream)
        return cancels + self._put_back(streams)

    def _put_back(self, streams: list[Stream]) -> list[GatewayAction]:
        self.moved += len(streams)
        return [*self.book.put_back(streams, self._now_ns)]

    def _on_replica(self, name: str, message: ToClient) -> list[GatewayAction]:
        if isinstance(message, Welcome | Accepted):
            return []
        stream = self._placed.get(name, {}).get(message.request_id)
        if stream is None:
            return []  # of an attempt that is over
        try:
            match message:
                case Tokens():
                    return self._on_tokens(stream, message)
                case Finished():
                    return self._on_finished(stream, message)
                case Refused():
                    return self._on_refused(name, stream, message)
        except ExpertFlowError as error:
            self._unplace(stream)
            return [SendToReplica(name, Cancel(stream.id_at_replica)), *self.book.fail(stream, error)]

    def _on_tokens(self, stream: Stream, message: Tokens) -> list[GatewayAction]:
        fresh = stream.take_tokens(message, self._now_ns)
        return [] if fresh is None else [SendToClient(stream.identity, fresh)]

    def _on_finished(self, stream: Stream, message: Finished) -> list[GatewayAction]:
        end = stream.finish(message, self._now_ns)
        if message.routed_experts is not None:
            tokens = [*stream.submit.prompt_ids, *stream.delivered]
            self.router.learn(tokens, message.routed_experts, stream.submit.domain)
        self._unplace(stream)
        return [*self.book.end(stream, end)]

    def _on_refused(self, name: str, stream: Stream, message: Refused) -> list[GatewayAction]:
        """Try again where the refusal is about the replica, not about the request."""
        self._unplace(stream)
        if message.error.code == BusyError.code:
            self._paused[name] = self._now_ns + PAUSE_NS
            self.router.fleet.close(name)
            return self._put_back([stream])
        if message.error.code == EngineError.code:
            return [*self._put_back([stream]), *self._drain(name)]
        return [*self.book.fail(stream, message.error.to_error())]

    def _tick(self) -> list[GatewayAction]:
        """End waiting requests whose time is up, and give busy replicas work again."""
        for name in [name for name, until_ns in self._paused.items() if until_ns <= self._now_ns]:
            del self._paused[name]
            self.router.fleet.reopen(name)
        overdue = self.book.overdue(self._now_ns)
        return [end for stream in overdue for end in self.book.end(stream, stream.end_here("deadline", self._now_ns))]

    def _place(self) -> list[GatewayAction]:
        """Send waiting requests to replicas as long as one can start."""
        actions: list[GatewayAction] = []
        while len(self.book.waiting) and len(self.router.fleet.free):
            streams = self.book.next_streams(self.router.lookahead)
            for stream in streams:
                stream.job = self.router.refresh(stream.job)
            passing = streams[0].passed_over < MAX_PASSED and streams[0].attempt == 0
            chosen = self.router.place([stream.job for stream in streams], passing)
            if chosen is None:
                break
            index, place = chosen
            for stream in streams[:index]:
                stream.passed_over += 1
            actions.append(self._start(streams[index], place))
        return actions

    def _start(self, stream: Stream, place: int) -> GatewayAction:
        name = self.router.fleet.names[place]
        self.book.waiting.start(stream)
        submit = stream.place(name, self._now_ns)
        self._placed[name][stream.id_at_replica] = stream
        self.router.fleet.send(place, stream.job.forecast)
        return SendToReplica(name, submit)

    def _unplace(self, stream: Stream) -> None:
        """Note that a replica has the request no more; its id there stays until it is placed again."""
        if stream.replica is not None and self._placed.get(stream.replica, {}).pop(stream.id_at_replica, None):
            self.router.fleet.end(stream.replica)
