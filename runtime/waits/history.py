"""The history of experts in a timeline: stalls, misses with their reasons, fills and evictions with their causes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

import msgspec

from ...errors import UsageError
from ...ipc.messages import Span

COMPUTE, LOADER = "compute", "loader"
PREFETCHES = ("hint", "prediction", "policy")
"""Causes of fills that no layer waits for when they are ordered."""

Key = tuple[int, int]
"""(layer, expert)."""


class Step(msgspec.Struct, frozen=True):
    """A step of compute, waits included."""

    number: int
    start_ns: int
    end_ns: int


class Stall(msgspec.Struct, frozen=True):
    """A wait of compute until an expert arrives: `experts` are missing of the `wanted` distinct ones of the layer."""

    start_ns: int
    end_ns: int
    step: int
    layer: int
    experts: tuple[int, ...]
    wanted: int

    @property
    def waited_ns(self) -> int:
        """Return the length of the wait."""
        return self.end_ns - self.start_ns


class Miss(msgspec.Struct, frozen=True):
    """The reason for a missing expert.

    Percentages (its probability, and the one that a prefetch needed) are -1 if it was not predicted. `under_way` is the
    cause of a fill that ran; empty: none.
    """

    reason: str
    chance_percent: int
    wanted_percent: int
    under_way: str
    slots: int


class Fill(msgspec.Struct, frozen=True):
    """A read from disk, or a copy into a slot (-1: not known). `unused`: its step did not use the expert."""

    layer: int
    expert: int
    slot: int
    cause: str
    step: int
    ordered_ns: int
    start_ns: int
    end_ns: int
    unused: bool

    @property
    def key(self) -> Key:
        """Return the expert, (layer, expert)."""
        return self.layer, self.expert


class Eviction(msgspec.Struct, frozen=True):
    """The release of a slot for `cause`; `for_step` and `for_layer` are -1 if it was for no step."""

    at_ns: int
    slot: int
    layer: int
    expert: int
    cause: str
    for_step: int
    for_layer: int


class History:
    """Steps, stalls, fills and evictions in order of time, with lookups."""

    def __init__(
        self,
        steps: list[Step],
        stalls: list[Stall],
        misses: dict[tuple[int, int, int], Miss],
        fills: list[Fill],
        evictions: list[Eviction],
    ) -> None:
        """Index the lists, which may be in any order; the keys of `misses` are (step, layer, expert)."""
        self.steps = sorted(steps, key=lambda step: step.start_ns)
        self.stalls = sorted(stalls, key=lambda stall: stall.start_ns)
        self.fills = sorted(fills, key=lambda fill: fill.start_ns)
        self.misses = misses
        self._evictions: defaultdict[Key, list[Eviction]] = defaultdict(list)
        for eviction in sorted(evictions, key=lambda eviction: eviction.at_ns):
            self._evictions[eviction.layer, eviction.expert].append(eviction)
        self._into: defaultdict[int, list[Fill]] = defaultdict(list)
        self._of: defaultdict[Key, list[Fill]] = defaultdict(list)
        for fill in sorted(fills, key=lambda fill: fill.ordered_ns):
            self._into[fill.slot].append(fill)
            self._of[fill.key].append(fill)

    def eviction_before(self, key: Key, time_ns: int) -> Eviction | None:
        """Return the last eviction of an expert before this time."""
        found = self._evictions.get(key, [])
        index = bisect_left(found, time_ns, key=lambda eviction: eviction.at_ns)
        return found[index - 1] if index else None

    def fill_after(self, eviction: Eviction) -> Fill | None:
        """Return the next fill of the slot: what the eviction was good for."""
        found = self._into.get(eviction.slot, [])
        index = bisect_left(found, eviction.at_ns, key=lambda fill: fill.ordered_ns)
        return found[index] if index < len(found) else None

    def fills_between(self, start_ns: int, end_ns: int) -> list[Fill]:
        """Return the fills that ran at any time between the two, in order of their starts."""
        last = bisect_left(self.fills, end_ns, key=lambda fill: fill.start_ns)
        return [fill for fill in self.fills[:last] if fill.end_ns > start_ns]

    def fill_before(self, key: Key, eviction: Eviction | None, end_ns: int) -> Fill | None:
        """Return the fill, ordered before `end_ns`, that loaded an expert after its eviction or for the first time."""
        found = self._of.get(key, [])
        since_ns = 0 if eviction is None else eviction.at_ns
        index = bisect_left(found, since_ns, key=lambda fill: fill.ordered_ns)
        return found[index] if index < len(found) and found[index].ordered_ns < end_ns else None


def read_history(spans: Iterable[tuple[str, Span]]) -> History:
    """Read (stage, span) pairs, in any order. Raises UsageError if the spans have no causes."""
    named: defaultdict[tuple[str, str], list[Span]] = defaultdict(list)
    for stage, span in spans:
        named[stage, span.name].append(span)
    try:
        return _history(named)
    except (KeyError, ValueError, TypeError) as error:
        remedy = "Record it again (--timeline FILE) with this version"
        raise UsageError(f"does not say why steps waited ({error!r})", "timeline", remedy) from error


def _history(named: dict[tuple[str, str], list[Span]]) -> History:
    steps = [
        Step(int(span.detail["step"]), span.start_ns, span.end_ns)
        for name in ("prefill", "decode")
        for span in named.get((COMPUTE, name), [])
    ]
    unused = {
        (int(span.detail["step"]), int(span.detail["layer"]), int(span.detail["expert"]))
        for span in named.get((LOADER, "unused"), [])
    }
    return History(
        steps,
        [_stall(span) for span in named.get((COMPUTE, "stall"), [])],
        dict(_miss(span) for span in sorted(named.get((LOADER, "miss"), []), key=lambda span: span.start_ns)),
        [_fill(span, unused) for name in ("load", "copy") for span in named.get((LOADER, name), [])],
        [_eviction(span) for span in named.get((LOADER, "evict"), [])],
    )


def _stall(span: Span) -> Stall:
    detail = span.detail
    experts = tuple(int(expert) for expert in str(detail["experts"]).split(",") if expert)
    step, layer, wanted = int(detail["step"]), int(detail["layer"]), int(detail["wanted"])
    return Stall(span.start_ns, span.end_ns, step, layer, experts, wanted)


def _miss(span: Span) -> tuple[tuple[int, int, int], Miss]:
    detail = span.detail
    percents = int(detail["chance_percent"]), int(detail["wanted_percent"])
    miss = Miss(str(detail["reason"]), *percents, str(detail["under_way"]), int(detail["slots"]))
    return (int(detail["step"]), int(detail["layer"]), int(detail["expert"])), miss


def _fill(span: Span, unused: set[tuple[int, int, int]]) -> Fill:
    detail = span.detail
    layer, expert, step, cause = int(detail["layer"]), int(detail["expert"]), int(detail["step"]), str(detail["cause"])
    ordered_ns = span.start_ns - 1000 * int(detail.get("queued_us", 0))
    useless = cause in PREFETCHES and (step, layer, expert) in unused
    slot = int(detail.get("slot", -1))
    return Fill(layer, expert, slot, cause, step, ordered_ns, span.start_ns, span.end_ns, useless)


def _eviction(span: Span) -> Eviction:
    detail = span.detail
    slot, layer, expert = int(detail["slot"]), int(detail["layer"]), int(detail["expert"])
    cause, wanted_for = str(detail["cause"]), (int(detail["for_step"]), int(detail["for_layer"]))
    return Eviction(span.start_ns, slot, layer, expert, cause, *wanted_for)
