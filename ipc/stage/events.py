"""What `Stage.poll` returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Received(NamedTuple):
    """A message from a peer stage."""

    source: str
    message: Any


class PeerJoined(NamedTuple):
    """A peer (re)started; the link to it is fresh, what was sent to its predecessor is gone. Sending works at once."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str]


class PeerLost(NamedTuple):
    """A peer has died; what it sent before was returned before this, what is sent to it now is dropped."""

    stage: str
    epoch: int


class Readable(NamedTuple):
    """A socket or descriptor given to `Stage.watch` can be read."""

    name: str


class Stopping(NamedTuple):
    """The stage is to end: after what is in flight (`gently`), or at once. `Stage.running` is False from now on."""

    gently: bool


StageEvent = Received | PeerJoined | PeerLost | Readable | Stopping
