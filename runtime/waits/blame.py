"""What each wait is blamed on: its time, divided among causes.

The time of a wait is divided in three steps:

1. While the link carries experts that nobody waits for, their share of it is blamed on them.
2. The rest is divided among the missing experts, each blamed on why it was missing.
3. Of a step's waits that prediction could have prevented, the link's rate is blamed for as much as no prediction could
   have saved: the time of the transfers that the step used, less the time in which compute ran beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from ...workers.loader.explanations import Reason
from .history import PREFETCHES, Fill, History, Stall

Blames = dict[str, float]
"""Nanoseconds by what is blamed for them."""


class Blame(StrEnum):
    """What is blamed beside the `Reason`s for which experts are missing."""

    CAPACITY = "capacity"
    LINK_RATE = "link rate"
    WRONG_ON_LINK = "wrong prediction on the link"
    EVICTED_FOR_WRONG = "evicted for a wrong prediction"
    OTHER_ON_LINK = "other prefetch on the link"
    UNKNOWN = "not known"


MEANINGS: dict[str, str] = {
    Blame.CAPACITY: "a layer wants more experts at a time than it has slots: they evict each other",
    Blame.LINK_RATE: "transfers that the steps used take longer than compute; no prediction could hide them",
    Blame.WRONG_ON_LINK: "the link carried experts that their step did not use",
    Blame.EVICTED_FOR_WRONG: "an expert had to go for one that its step did not use",
    Blame.OTHER_ON_LINK: "the link carried experts for a later layer",
    Blame.UNKNOWN: "the timeline does not say",
    Reason.NEVER: "neither plan nor hint named the expert",
    Reason.LOW: "its chance was below what is worth a transfer",
    Reason.LATE: "it was named, or on its way, but not there when its layer began",
    Reason.NO_ROOM: "no slot was free or worth less",
    Reason.DROPPED: "its layer began before the link had come to it",
    Reason.FAILED: "its file could not be read",
}
_PREDICTABLE = frozenset({Reason.NEVER, Reason.LOW, Reason.LATE, Reason.NO_ROOM, Reason.DROPPED})


def blame_stalls(history: History) -> list[Blames]:
    """Return for each stall, in their order, what its time is blamed on."""
    blames = [_divide(history, stall, beside) for stall, beside in _with_fills(history)]
    _charge_link(history, blames)
    return blames


def missing_because(history: History, stall: Stall, expert: int) -> str:
    """Return why one of the experts of a stall was missing, a `Blame` or a `Reason`."""
    miss = history.misses.get((stall.step, stall.layer, expert))
    if miss is not None and stall.wanted > miss.slots:
        return Blame.CAPACITY
    eviction = history.eviction_before((stall.layer, expert), stall.end_ns)
    if eviction is not None and eviction.cause in PREFETCHES:
        filled = history.fill_after(eviction)
        if filled is not None and filled.unused:
            return Blame.EVICTED_FOR_WRONG
    return Blame.UNKNOWN if miss is None else miss.reason


def shared_ns(fill: Fill, stall: Stall) -> int:
    """Return for how long a fill ran during a stall."""
    return max(0, min(fill.end_ns, stall.end_ns) - max(fill.start_ns, stall.start_ns))


def _with_fills(history: History) -> Iterator[tuple[Stall, list[Fill]]]:
    """Yield each stall with the fills that ran beside it."""
    coming, running = iter(history.fills), list[Fill]()
    fill = next(coming, None)
    for stall in history.stalls:
        while fill is not None and fill.start_ns < stall.end_ns:
            running.append(fill)
            fill = next(coming, None)
        running = [each for each in running if each.end_ns > stall.start_ns]
        yield stall, [each for each in running if shared_ns(each, stall)]


def _divide(history: History, stall: Stall, beside: list[Fill]) -> Blames:
    """Steps 1 and 2."""
    blames: defaultdict[str, float] = defaultdict(float)
    for name, time_ns in _link_shares(stall, beside).items():
        if name:
            blames[name] += time_ns
            continue
        for expert in stall.experts:
            blames[missing_because(history, stall, expert)] += time_ns / len(stall.experts)
        if not stall.experts:
            blames[Blame.UNKNOWN] += time_ns
    return dict(blames)


def _link_shares(stall: Stall, beside: list[Fill]) -> Blames:
    """Return the time of a stall by who took the link; "" while it carried what is waited for, or nothing."""
    shares: defaultdict[str, float] = defaultdict(float)
    edges = {edge for fill in beside for edge in (fill.start_ns, fill.end_ns)}
    inner = {edge for edge in edges if stall.start_ns < edge < stall.end_ns}
    for start_ns, end_ns in pairwise(sorted({stall.start_ns, stall.end_ns} | inner)):
        takers = [_taker(fill, stall) for fill in beside if fill.start_ns < end_ns and fill.end_ns > start_ns] or [""]
        for taker in takers:
            shares[taker] += (end_ns - start_ns) / len(takers)
    return shares


def _taker(fill: Fill, stall: Stall) -> str:
    if fill.cause not in PREFETCHES or (fill.layer == stall.layer and fill.expert in stall.experts):
        return ""
    return Blame.WRONG_ON_LINK if fill.unused else Blame.OTHER_ON_LINK


def _charge_link(history: History, blames: list[Blames]) -> None:
    """Step 3."""
    stalls: defaultdict[int, list[int]] = defaultdict(list)
    for place, stall in enumerate(history.stalls):
        stalls[stall.step].append(place)
    transfers: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for fill in history.fills:
        if not fill.unused:
            transfers[fill.step].append((fill.start_ns, fill.end_ns))
    for step in history.steps:
        mine = [blames[place] for place in stalls[step.number]]
        waited_ns = sum(history.stalls[place].waited_ns for place in stalls[step.number])
        computing_ns = step.end_ns - step.start_ns - waited_ns
        _move_to_link(mine, _covered_ns(transfers[step.number]) - computing_ns)


def _move_to_link(blames: list[Blames], most_ns: float) -> None:
    """Blame the link's rate for up to `most_ns` of what prediction could have prevented, the same share of each."""
    preventable_ns = sum(time_ns for each in blames for name, time_ns in each.items() if name in _PREDICTABLE)
    if most_ns <= 0 or preventable_ns <= 0:
        return
    share = min(1.0, most_ns / preventable_ns)
    for each in blames:
        charged_ns = share * sum(time_ns for name, time_ns in each.items() if name in _PREDICTABLE)
        for name in _PREDICTABLE & each.keys():
            each[name] *= 1 - share
        each[Blame.LINK_RATE] = each.get(Blame.LINK_RATE, 0.0) + charged_ns


def _covered_ns(spans: list[tuple[int, int]]) -> int:
    """Return the time in which at least one of these spans goes on; they are in order of their starts."""
    covered_ns = until_ns = 0
    for start_ns, end_ns in spans:
        covered_ns += max(0, end_ns - max(start_ns, until_ns))
        until_ns = max(until_ns, end_ns)
    return covered_ns
