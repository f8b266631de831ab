"""Events that `Stage.poll` returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Received(NamedTuple):
    """A message from a peer stage."""

    source: str
    message: Any


class PeerJoined(NamedTuple):
    """A peer has (re)started; its link is new and works at once. Messages to its predecessor are lost."""

    stage: str
    epoch: int
    facts: dict[str, int | float | str]


class PeerLost(NamedTuple):
    """A peer has died. Its messages were returned before this event; messages to it are dropped."""

    stage: str
    epoch: int


class Readable(NamedTuple):
    """A socket or descriptor given to `Stage.watch` can be read."""

    name: str


class Stopping(NamedTuple):
    """The stage must end: after the work in flight (`gently`), or at once. `Stage.running` is False from now on."""

    gently: bool


class IntakeClosed(NamedTuple):
    """The supervisor drains the engine: nothing new is to be accepted. Only the scheduler is told."""


StageEvent = Received | PeerJoined | PeerLost | Readable | Stopping | IntakeClosed
