"""The longest waits with the chain that led to each, and the sum by cause."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import groupby

import msgspec

from .blame import Blames, blame_stalls, missing_cause, shared_ns
from .history import Eviction, Fill, History, Stall


class EvictionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The eviction of an expert. `for_expert` [layer, expert] took its slot; `for_unused`: its step did not use it."""

    before_wait_ns: int
    cause: str
    for_step: int
    for_layer: int
    for_expert: tuple[int, int] | None
    for_unused: bool


class FillFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The arrival of a missing expert: ordered `ordered_ns` after the wait began (negative: before it), then queued."""

    cause: str
    ordered_ns: int
    queued_ns: int
    transfer_ns: int


class MissingExpert(msgspec.Struct, frozen=True, kw_only=True):
    """An expert that a layer waited for. Percentages are -1 if it was not predicted; None: not in the timeline."""

    expert: int
    blamed: str
    reason: str
    chance_percent: int
    wanted_percent: int
    under_way: str
    slots: int
    evicted: EvictionFacts | None
    filled: FillFacts | None


class LinkUse(msgspec.Struct, frozen=True, kw_only=True):
    """Fills of other experts that ran during a wait."""

    cause: str
    unused: bool
    fills: int
    time_ns: int


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """All waiting of one layer of one step. `wanted`: distinct experts of the layer."""

    step: int
    layer: int
    start_ns: int
    waited_ns: int
    wanted: int
    experts: list[MissingExpert]
    link: list[LinkUse]
    blames: dict[str, int]


class WaitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Times in nanoseconds; `blames` add up to `waited_ns` but for rounding, the largest first."""

    steps: int
    steps_ns: int
    waits: int
    waited_ns: int
    blames: dict[str, int]
    longest: list[Wait]


def report_waits(history: History, longest: int = 10, blames: list[Blames] | None = None) -> WaitReport:
    """Return the sum of all waits by blame, and the `longest` longest of them.

    `blames` are those of `blame_stalls`, if they are known already.
    """
    pairs = zip(history.stalls, blame_stalls(history) if blames is None else blames, strict=True)
    waits = [list(group) for _, group in groupby(pairs, key=lambda pair: (pair[0].step, pair[0].layer))]
    waits.sort(key=lambda wait: -_waited_ns(wait))
    return WaitReport(
        steps=len(history.steps),
        steps_ns=sum(step.end_ns - step.start_ns for step in history.steps),
        waits=len(waits),
        waited_ns=sum(stall.waited_ns for stall in history.stalls),
        blames=_sum([blames for wait in waits for _, blames in wait]),
        longest=[_explain(history, wait) for wait in waits[:longest]],
    )


def _waited_ns(wait: list[tuple[Stall, Blames]]) -> int:
    return sum(stall.waited_ns for stall, _ in wait)


def _sum(blames: list[Blames]) -> dict[str, int]:
    """Add up, the largest first."""
    total: Counter[str] = Counter()
    for stall in blames:
        total.update({str(name): time_ns for name, time_ns in stall.items()})  # pyright: ignore[reportArgumentType]
    return {name: round(time_ns) for name, time_ns in total.most_common() if round(time_ns)}


def _explain(history: History, wait: list[tuple[Stall, Blames]]) -> Wait:
    stalls = [stall for stall, _ in wait]
    first = stalls[0]
    return Wait(
        step=first.step,
        layer=first.layer,
        start_ns=first.start_ns,
        waited_ns=_waited_ns(wait),
        wanted=first.wanted,
        experts=[_missing(history, stalls, expert) for expert in first.experts],
        link=_link_uses(history, stalls),
        blames=_sum([blames for _, blames in wait]),
    )


def _missing(history: History, stalls: list[Stall], expert: int) -> MissingExpert:
    first, end_ns = stalls[0], stalls[-1].end_ns
    key = (first.layer, expert)
    miss = history.misses.get((first.step, first.layer, expert))
    eviction = history.eviction_before(key, first.end_ns)
    fill = history.fill_before(key, eviction, end_ns)
    return MissingExpert(
        expert=expert,
        blamed=str(missing_cause(history, first, expert)),
        reason=miss.reason if miss else "",
        chance_percent=miss.chance_percent if miss else -1,
        wanted_percent=miss.wanted_percent if miss else -1,
        under_way=miss.under_way if miss else "",
        slots=miss.slots if miss else -1,
        evicted=None if eviction is None else _eviction_facts(history, eviction, first),
        filled=None if fill is None else _fill_facts(fill, first),
    )


def _eviction_facts(history: History, eviction: Eviction, stall: Stall) -> EvictionFacts:
    fill = history.fill_after(eviction)
    return EvictionFacts(
        before_wait_ns=stall.start_ns - eviction.at_ns,
        cause=eviction.cause,
        for_step=eviction.for_step,
        for_layer=eviction.for_layer,
        for_expert=fill.key if fill else None,
        for_unused=fill is not None and fill.unused,
    )


def _fill_facts(fill: Fill, stall: Stall) -> FillFacts:
    return FillFacts(
        cause=fill.cause,
        ordered_ns=fill.ordered_ns - stall.start_ns,
        queued_ns=fill.start_ns - fill.ordered_ns,
        transfer_ns=fill.end_ns - fill.start_ns,
    )


def _link_uses(history: History, stalls: list[Stall]) -> list[LinkUse]:
    """Return the fills of other experts, by cause, those that took the link longest first."""
    missing = {(stalls[0].layer, expert) for expert in stalls[0].experts}
    uses: defaultdict[tuple[str, bool], list[int]] = defaultdict(list)
    for fill in history.fills_between(stalls[0].start_ns, stalls[-1].end_ns):
        time_ns = sum(shared_ns(fill, stall) for stall in stalls)
        if time_ns and fill.key not in missing:
            uses[fill.cause, fill.unused].append(time_ns)
    found = [
        LinkUse(cause=cause, unused=unused, fills=len(times), time_ns=sum(times))
        for (cause, unused), times in uses.items()
    ]
    return sorted(found, key=lambda use: -use.time_ns)
