"""Points of an engine's history: what its stages did in one second, as the supervisor keeps it for an hour."""

from __future__ import annotations

import msgspec

from .base import Message


class StagePoint(msgspec.Struct, frozen=True, array_like=True):
    """One stage in one second. None: not known, since the stage has not published twice yet."""

    rate_per_s: float | None
    """Units of work a second (`StageStats.done`)."""
    busy_share: float | None
    """Share of the time in which the stage worked, 0 to 1."""
    stall_share: float | None
    """Share of the time in which it waited for `waiting_on` with work to do, 0 to 1."""
    waiting_on: str
    queue: int
    restarts: int
    """Restarts since the engine's start."""
    pss_bytes: int
    """Memory when it was last measured, shared pages by share."""


class HistoryPoint(msgspec.Struct, frozen=True, array_like=True):
    """Everything that is kept of one second. Integers without another word are counts of this second."""

    time_ns: int
    """End of the second, in nanoseconds of the machine's monotonic clock."""
    seconds: float
    """Length of the time that the counts cover; longer than 1 if the supervisor was held up."""
    stages: dict[str, StagePoint]
    """Stage -> its figures; the supervisor and spare processes have memory alone."""
    hits: int = 0
    misses: int = 0
    stall_ns: int = 0
    """Time for which compute waited for experts."""
    loads: int = 0
    loaded_bytes: int = 0
    evictions: int = 0
    prefetches: int = 0
    useful: int = 0
    wasted: int = 0
    predicted: int = 0
    """Experts that predictions called likely, in layers that ran."""
    needed: int = 0
    """Experts that these layers used."""
    predicted_needed: int = 0
    """Experts that were both."""
    prefill_tokens: int = 0
    decode_tokens: int = 0
    running: int = 0
    """Requests that have a row now."""
    waiting: int = 0
    """Requests in the queue now."""
    kv_bytes: int = 0
    """Size of the KV caches now."""

    @property
    def hit_share(self) -> float | None:
        """Return the share of hits among the experts that layers needed; None without any."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def precision(self) -> float | None:
        """Return the share of the predicted experts that were used; None without any."""
        return _share(self.predicted_needed, self.predicted)

    @property
    def recall(self) -> float | None:
        """Return the share of the used experts that were predicted; None without any."""
        return _share(self.predicted_needed, self.needed)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Return prompt tokens computed a second."""
        return self.prefill_tokens / self.seconds

    @property
    def decode_tokens_per_s(self) -> float:
        """Return output tokens a second."""
        return self.decode_tokens / self.seconds


class AskHistory(Message, frozen=True):
    """A watcher asks for the points after `since_ns`, of the machine's monotonic clock; 0: all of the last hour."""

    since_ns: int = 0


class History(Message, frozen=True, kw_only=True):
    """Answer to `AskHistory`: points in the order of time, as the supervisor keeps them, encoded."""

    device: str = ""
    """Device of the engine, by which a group calls it."""
    points: list[msgspec.Raw]

    def decode(self) -> list[HistoryPoint]:
        """Return the points."""
        return [_POINT.decode(point) for point in self.points]


_POINT = msgspec.msgpack.Decoder(HistoryPoint)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
