"""Messages about what an engine does now, beyond statistics. Stages make them only while somebody watches (I7)."""

from __future__ import annotations

import msgspec

from .base import Message
from .spans import Span


class Watched(Message, frozen=True):
    """Tell a stage that somebody watches (`on`), or that nobody does any more."""

    on: bool


class CacheHeat(Message, frozen=True, kw_only=True):
    """State of every expert, by layer: arrays are uint8 [layers, experts], row-major."""

    time_ns: int
    layers: int
    experts: int
    residence: bytes
    """0 not in memory, 1 on its way, 2 in memory, 3 in memory and about to leave."""
    use: bytes
    """Share of recent steps that used the expert, 255 is all of them; empty: not counted."""


class OpenRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request that the scheduler has accepted and not ended. Its texts are not told."""

    request_id: str
    state: str
    """waiting, prefill or decode."""
    prompt_tokens: int
    tokens: int
    """Output tokens so far."""
    token_limit: int
    age_ns: int
    """Time since it was accepted."""
    priority: int = 0
    user: str = ""


class OpenRequests(Message, frozen=True, kw_only=True):
    """The first requests in order of arrival, those that run before those that wait, and the number of all."""

    time_ns: int
    total: int
    requests: list[OpenRequest]


class StageSpans(msgspec.Struct, frozen=True):
    """Spans that a stage published together. `number` grows from message to message of an engine."""

    number: int
    stage: str
    spans: list[Span]


class AskActivity(Message, frozen=True):
    """A watcher asks for `Activity`, with the spans after the number `after` that it has already."""

    after: int = -1


class Activity(Message, frozen=True, kw_only=True):
    """Answer to `AskActivity`. What no stage has published yet since somebody watches is None, or empty."""

    time_ns: int
    device: str = ""
    """Device of the engine, by which a group calls it."""
    heat: CacheHeat | None = None
    requests: OpenRequests | None = None
    spans: list[StageSpans] = []
