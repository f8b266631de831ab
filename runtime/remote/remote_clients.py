"""The proxy's state machine: which remote clients there are, what of theirs reaches the engine, what they are told.

Pure: no socket, no clock. The engine sees a connection for each remote client, so that clients take turns, and lose
their requests when they go, as local ones do. A channel is a socket of the engine's run directory, by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from ...ipc.messages import AskActivity, AskHistory, AskSnapshot, ErrorFacts, Refused, Submit
from ...ipc.messages.to_scheduler import FROM_CLIENT
from ...ipc.transport.addresses import CLIENTS, MONITOR
from ...ipc.transport.codec import Unreadable, decode
from ...workers.scheduler.validation import request_error, unreadable_error
from .curve import MAX_UNREAD

MAX_CLIENTS = 1000
MAX_LOST = 10_000
"""Requests of which a client is told that they ended because it did not read; one that goes on sending is let go."""
Channel = bytes


class Arrived(NamedTuple):
    """A message of the client `identity`, which has shown the public key `key`."""

    identity: bytes
    key: bytes
    channel: Channel
    payload: bytes


class Answered(NamedTuple):
    """The engine has sent this to a client."""

    identity: bytes
    payload: bytes


class Undelivered(NamedTuple):
    """A reply could not be sent: the client is `gone`, or it leaves too many messages unread."""

    identity: bytes
    payload: bytes
    gone: bool


class Tick(NamedTuple):
    """Some seconds have passed. `allows` tells whether a key is still allowed."""

    allows: Callable[[bytes], bool]


class Open(NamedTuple):
    """Connect to the engine for a client."""

    identity: bytes
    channel: Channel


class Forward(NamedTuple):
    """Send a client's message to the engine."""

    identity: bytes
    payload: bytes


class Reply(NamedTuple):
    """Send to a client."""

    identity: bytes
    channel: Channel
    payload: bytes


class Close(NamedTuple):
    """Close a client's connection to the engine, which then drops its requests."""

    identity: bytes


ProxyEvent = Arrived | Answered | Undelivered | Tick
ProxyAction = Open | Forward | Reply | Close

FROM_REMOTE_WATCHER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(AskSnapshot | AskHistory | AskActivity)
"""Questions of a remote watcher. It gives no orders."""
_DECODERS: dict[Channel, msgspec.msgpack.Decoder[Any]] = {
    CLIENTS.encode(): FROM_CLIENT,
    MONITOR.encode(): FROM_REMOTE_WATCHER,
}
PING = b""
"""A message that clients ignore; one that cannot be sent shows that its client has gone."""


class _Head(msgspec.Struct):
    type: str = ""
    request_id: str = ""


_HEAD = msgspec.msgpack.Decoder(_Head)
_ENCODER = msgspec.msgpack.Encoder()
_ENDS = ("Finished", "Refused")


@dataclass(slots=True)
class ProxyCounts:
    """Counts since the proxy's start."""

    clients: int = 0
    """Remote clients now."""
    accepted: int = 0
    turned_away: int = 0
    """Clients that came while there were too many, or whose key was allowed no more."""
    rejected: int = 0
    """Messages that no remote client may send, or that cannot be read."""
    slow: int = 0
    """Times that a client left too many messages unread."""


@dataclass(slots=True)
class _RemoteClient:
    key: bytes
    channel: Channel
    connected: bool = False
    """Set while the engine has a connection for it."""
    open_ids: set[str] = field(default_factory=set)
    lost_ids: set[str] = field(default_factory=set)
    """Requests that ended because it did not read; it is told as soon as it reads again."""
    overrun: bool = False


class RemoteClients:
    """Core of the proxy: `handle` takes each event; the caller performs the returned actions in order."""

    def __init__(self, max_clients: int = MAX_CLIENTS, counts: ProxyCounts | None = None) -> None:
        self.counts = counts or ProxyCounts()
        self._max_clients = max_clients
        self._clients: dict[bytes, _RemoteClient] = {}

    def handle(self, event: ProxyEvent) -> list[ProxyAction]:
        """Return the actions that one event causes, in order."""
        match event:
            case Arrived():
                actions = self._arrived(event)
            case Answered():
                actions = self._answered(event)
            case Undelivered():
                actions = self._undelivered(event)
            case Tick(allows):
                actions = [action for identity in list(self._clients) for action in self._tick(identity, allows)]
        self.counts.clients = len(self._clients)
        return actions

    def _arrived(self, event: Arrived) -> list[ProxyAction]:
        client = self._clients.get(event.identity)
        if event.channel not in _DECODERS or (client is not None and client.channel != event.channel):
            return self._reject()
        if client is None and len(self._clients) >= self._max_clients:
            self.counts.turned_away += 1
            return _refuse(event, _head_of(event.payload).request_id, _full_error(self._max_clients))
        if client is None:
            client = self._clients[event.identity] = _RemoteClient(event.key, event.channel)
            self.counts.accepted += 1
        message = decode(_DECODERS[event.channel], event.payload)
        if isinstance(message, Unreadable):
            error = unreadable_error(message.reason)
            return [*self._reject(), *_refuse(event, _head_of(event.payload).request_id, error)]
        if isinstance(message, Submit):
            if message.attachment:
                return _refuse(event, message.request_id, _attachment_error())
            (client.lost_ids if client.overrun else client.open_ids).add(message.request_id)
            if len(client.lost_ids) > MAX_LOST:
                return self._remove(event.identity)
        return [] if client.overrun else [*_connect(event.identity, client), Forward(event.identity, event.payload)]

    def _answered(self, event: Answered) -> list[ProxyAction]:
        client = self._clients.get(event.identity)
        if client is None or not client.connected:
            return []
        if client.open_ids and (head := _head_of(event.payload)).type in _ENDS:
            client.open_ids.discard(head.request_id)
        return [Reply(event.identity, client.channel, event.payload)]

    def _undelivered(self, event: Undelivered) -> list[ProxyAction]:
        client = self._clients.get(event.identity)
        if client is None:
            return []
        if event.gone:
            return self._remove(event.identity)
        if client.channel == CLIENTS.encode() and (head := _head_of(event.payload)).type in _ENDS:
            client.lost_ids.add(head.request_id)
        if client.overrun:
            return []
        self.counts.slow += 1
        client.overrun, client.connected = True, False
        client.lost_ids |= client.open_ids
        client.open_ids.clear()
        return [Close(event.identity)]

    def _tick(self, identity: bytes, allows: Callable[[bytes], bool]) -> list[ProxyAction]:
        """Let a client go whose key is allowed no more, tell a slow one what it has lost, ping the others."""
        client = self._clients[identity]
        if not allows(client.key):
            self.counts.turned_away += 1
            return self._remove(identity)
        lost, client.lost_ids = sorted(client.lost_ids), set()
        client.overrun = bool(lost)
        refusals = [Reply(identity, client.channel, _encode(request_id, _unread_error())) for request_id in lost]
        return [*refusals, *([] if lost else [Reply(identity, client.channel, PING)])]

    def _remove(self, identity: bytes) -> list[ProxyAction]:
        del self._clients[identity]
        return [Close(identity)]

    def _reject(self) -> list[ProxyAction]:
        self.counts.rejected += 1
        return []


def _connect(identity: bytes, client: _RemoteClient) -> Iterator[ProxyAction]:
    if not client.connected:
        client.connected = True
        yield Open(identity, client.channel)


def _refuse(event: Arrived, request_id: str, error: ErrorFacts) -> list[ProxyAction]:
    """Return the refusal; a watcher gets none, as its protocol has none."""
    if event.channel != CLIENTS.encode():
        return []
    return [Reply(event.identity, event.channel, _encode(request_id, error))]


def _encode(request_id: str, error: ErrorFacts) -> bytes:
    return _ENCODER.encode(Refused(request_id, error))


def _head_of(payload: bytes) -> _Head:
    head = decode(_HEAD, payload)
    return _Head() if isinstance(head, Unreadable) else head


def _full_error(limit: int) -> ErrorFacts:
    return ErrorFacts("busy", f"{limit:,} remote clients are connected, the limit is {limit:,}", "tcp", "Try later")


def _attachment_error() -> ErrorFacts:
    remedy = "Send them over HTTP, or run the client on the engine's machine"
    return request_error("images cannot be sent over TCP", "attachment", remedy)


def _unread_error() -> ErrorFacts:
    what = f"the client left {MAX_UNREAD:,} messages unread, so its open requests were ended"
    return request_error(what, "client", "Read answers as they come, and submit again")
