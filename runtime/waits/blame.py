"""The causes of each wait: divides its time among them.

The time of a wait is divided in three steps:

1. While the link carries experts that nobody waits for, their share of the link is blamed on them.
2. The rest is divided among the missing experts, each share blamed on the reason why the expert was missing.
3. Of a step's waits that prediction could have prevented, the link's rate is blamed for the part that no prediction
   could have saved: the time of the transfers that the step used, less the time in which compute ran beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise

from ...workers.loader.explanations import Reason
from .history import PREFETCHES, Fill, History, Stall

Blames = dict[str, float]
"""Blame or reason -> nanoseconds."""


class Blame(StrEnum):
    """Causes of waits beside the loader's `Reason`s for missing experts."""

    CAPACITY = "capacity"
    LINK_RATE = "link rate"
    WRONG_ON_LINK = "wrong prediction on the link"
    EVICTED_FOR_WRONG = "evicted for a wrong prediction"
    OTHER_ON_LINK = "other prefetch on the link"
    UNKNOWN = "not known"


MEANINGS: dict[str, str] = {
    Blame.CAPACITY: "a layer uses more experts at a time than there are slots: they evict each other",
    Blame.LINK_RATE: "transfers that the steps used take longer than compute; no prediction could hide them",
    Blame.WRONG_ON_LINK: "the link carried experts that their step did not use",
    Blame.EVICTED_FOR_WRONG: "an expert was evicted for one that its step did not use",
    Blame.OTHER_ON_LINK: "the link carried experts for a later layer",
    Blame.UNKNOWN: "the timeline does not have the cause",
    Reason.NEVER: "neither a prediction nor a hint named the expert",
    Reason.LOW: "its probability was too low for a prefetch",
    Reason.LATE: "it was named, or under way, but had not arrived when its layer began",
    Reason.NO_ROOM: "no slot was free or worth less",
    Reason.DROPPED: "its layer began before its transfer did",
    Reason.FAILED: "its file could not be read",
}
_PREDICTABLE = frozenset({Reason.NEVER, Reason.LOW, Reason.LATE, Reason.NO_ROOM, Reason.DROPPED})


def blame_stalls(history: History) -> list[Blames]:
    """Return the blames of each stall, in the order of `history.stalls`."""
    blames = [_divide(history, stall, beside) for stall, beside in _with_fills(history)]
    _charge_link(history, blames)
    return blames


def missing_cause(history: History, stall: Stall, expert: int) -> str:
    """Return the cause why one of the experts of a stall was missing, a `Blame` or a `Reason`."""
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
    """Return the nanoseconds for which a fill ran during a stall."""
    return max(0, min(fill.end_ns, stall.end_ns) - max(fill.start_ns, stall.start_ns))


def _with_fills(history: History) -> Iterator[tuple[Stall, list[Fill]]]:
    """Yield each stall with the fills that ran beside it."""
    later, running = iter(history.fills), list[Fill]()
    fill = next(later, None)
    for stall in history.stalls:
        while fill is not None and fill.start_ns < stall.end_ns:
            running.append(fill)
            fill = next(later, None)
        running = [other for other in running if other.end_ns > stall.start_ns]
        yield stall, [other for other in running if shared_ns(other, stall)]


def _divide(history: History, stall: Stall, beside: list[Fill]) -> Blames:
    """Return the blames of a stall after steps 1 and 2."""
    blames: defaultdict[str, float] = defaultdict(float)
    for name, time_ns in _link_shares(stall, beside).items():
        if name:
            blames[name] += time_ns
            continue
        for expert in stall.experts:
            blames[missing_cause(history, stall, expert)] += time_ns / len(stall.experts)
        if not stall.experts:
            blames[Blame.UNKNOWN] += time_ns
    return dict(blames)


def _link_shares(stall: Stall, beside: list[Fill]) -> Blames:
    """Return the time of a stall by the use of the link; "" while it carried an awaited expert, or nothing."""
    shares: defaultdict[str, float] = defaultdict(float)
    edges = {edge for fill in beside for edge in (fill.start_ns, fill.end_ns)}
    inner = {edge for edge in edges if stall.start_ns < edge < stall.end_ns}
    for start_ns, end_ns in pairwise(sorted({stall.start_ns, stall.end_ns} | inner)):
        uses = [_link_use(fill, stall) for fill in beside if fill.start_ns < end_ns and fill.end_ns > start_ns] or [""]
        for use in uses:
            shares[use] += (end_ns - start_ns) / len(uses)
    return shares


def _link_use(fill: Fill, stall: Stall) -> str:
    if fill.cause not in PREFETCHES or (fill.layer == stall.layer and fill.expert in stall.experts):
        return ""
    return Blame.WRONG_ON_LINK if fill.unused else Blame.OTHER_ON_LINK


def _charge_link(history: History, blames: list[Blames]) -> None:
    """Apply step 3 to the blames, in place."""
    stalls: defaultdict[int, list[int]] = defaultdict(list)
    for index, stall in enumerate(history.stalls):
        stalls[stall.step].append(index)
    transfers: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for fill in history.fills:
        if not fill.unused:
            transfers[fill.step].append((fill.start_ns, fill.end_ns))
    for step in history.steps:
        of_step = [blames[index] for index in stalls[step.number]]
        waited_ns = sum(history.stalls[index].waited_ns for index in stalls[step.number])
        computing_ns = step.end_ns - step.start_ns - waited_ns
        _move_to_link(of_step, covered_ns(transfers[step.number]) - computing_ns)


def _move_to_link(blames: list[Blames], max_ns: float) -> None:
    """Blame the link's rate for up to `max_ns` of what prediction could have prevented, the same share of each."""
    preventable_ns = sum(time_ns for stall in blames for name, time_ns in stall.items() if name in _PREDICTABLE)
    if max_ns <= 0 or preventable_ns <= 0:
        return
    share = min(1.0, max_ns / preventable_ns)
    for stall in blames:
        charged_ns = share * sum(time_ns for name, time_ns in stall.items() if name in _PREDICTABLE)
        for name in _PREDICTABLE & stall.keys():
            stall[name] *= 1 - share
        stall[Blame.LINK_RATE] = stall.get(Blame.LINK_RATE, 0.0) + charged_ns


def covered_ns(spans: list[tuple[int, int]]) -> int:
    """Return the nanoseconds covered by at least one of the spans, which are in order of their starts."""
    covered_ns = until_ns = 0
    for start_ns, end_ns in spans:
        covered_ns += max(0, end_ns - max(start_ns, until_ns))
        until_ns = max(until_ns, end_ns)
    return covered_ns
