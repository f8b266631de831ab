"""Events and actions of the gateway's core."""

from __future__ import annotations

from typing import NamedTuple

from ....ipc.messages import FromClient, ToClient
from ....ipc.messages.to_client import Welcome
from ..routing.fleet import ReplicaState


class FromFront(NamedTuple):
    """A client sent a message."""

    identity: bytes
    message: FromClient


class ClientGone(NamedTuple):
    """A client cannot be reached any more."""

    identity: bytes


class ReplicaJoined(NamedTuple):
    """A replica is ready, and these are the facts of its engine."""

    name: str
    facts: Welcome


class ReplicaLost(NamedTuple):
    """A replica has died, or cannot be reached."""

    name: str


class ReplicaDraining(NamedTuple):
    """A replica is about to end: what it runs must go on elsewhere."""

    name: str


class FromReplica(NamedTuple):
    """The engine of a replica sent a message."""

    name: str
    message: ToClient


class StatePublished(NamedTuple):
    """A replica published its state."""

    name: str
    state: ReplicaState


class Tick(NamedTuple):
    """Time has passed."""


GatewayEvent = (
    FromFront | ClientGone | ReplicaJoined | ReplicaLost | ReplicaDraining | FromReplica | StatePublished | Tick
)


class SendToClient(NamedTuple):
    """Send a message to a client."""

    identity: bytes
    message: ToClient


class SendToReplica(NamedTuple):
    """Send a message to the engine of a replica."""

    name: str
    message: FromClient


GatewayAction = SendToClient | SendToReplica
