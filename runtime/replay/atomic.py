"""Event-atomic replay (arXiv 2608.07911): a layer of a step is one event.

The union of the batch's experts is judged against the cache as it was when the event began, and admitted at its end.
Replaying the same accesses one after another instead flatters some policies by a quarter and turns their order round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import msgspec
import numpy as np

from ...workers.loader.policies import Policy
from .steps import Uses

Sharing = Literal["pool", "layer"]
NOTHING = np.empty(0, dtype=np.int64)
ABSENT, WANTED_AHEAD, PROTECTED, DEMANDED = -1.0, 2.0, 3.0, 4.0
"""Scores beside worth, which lies from 0 to 1: what is here and hinted stays before what is only hinted."""


class Cache(Protocol):
    """Experts in slots. `admit` brings in all `wanted` keys; of the others, those worth least make room."""

    resident: np.ndarray
    """bool by key."""
    slots: int
    """In all."""

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        """Where more is wanted than there are slots, the last in ascending order stay.

        `bypass`: what was wanted must earn its slot like everything else, and may be gone at once.
        """
        ...


class LayerCaches:
    """As many slots for each layer (the first ones have one more if it does not come out even), all layers decided at
    once."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self.slots = slots
        quota = slots // layers + (np.arange(layers) < slots % layers)
        self._within = np.arange(experts) >= experts - quota[:, None]
        """bool [layers, experts]: by rank in its layer, the best last."""
        self.resident = np.zeros(layers * experts, dtype=bool)

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        scores = np.where(self.resident, worth.ravel(), ABSENT)
        missing = wanted[~self.resident[wanted]]
        scores[missing] = worth.ravel()[missing] if bypass else DEMANDED
        by_layer = scores.reshape(self._within.shape)
        kept = np.empty_like(self._within)
        np.put_along_axis(kept, np.argsort(by_layer, axis=1, kind="stable"), self._within, axis=1)
        self.resident[:] = (kept & (by_layer != ABSENT)).ravel()


class PoolCache:
    """Slots that any expert of any layer may take."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self.slots = slots
        self.resident = np.zeros(layers * experts, dtype=bool)

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        missing = wanted[~self.resident[wanted]]
        staying = np.flatnonzero(self.resident)
        worths = worth.ravel()
        if bypass:
            staying, missing = np.sort(np.concatenate([staying, missing])), missing[:0]
        missing = missing[max(len(missing) - self.slots, 0) :]
        surplus = max(len(staying) + len(missing) - self.slots, 0)
        leaving = staying[np.argsort(worths[staying], kind="stable")[:surplus]]
        if bypass:
            self.resident[staying] = True
        self.resident[leaving] = False
        self.resident[missing] = True


class Hints(Protocol):
    """Foretells every layer of a step while the layer before it runs."""

    def of(self, step: int) -> np.ndarray:
        """The hinted keys of a step, ascending."""
        ...


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one replay. An access is an expert of the union of a layer of a step; a hit was resident when its
    event began."""

    slots: int
    steps: int
    accesses: int
    hits: int
    loads: int
    """All of them; `prefetches` were caused by a hint, `useful` of those were used by the event they were hinted
    for."""
    prefetches: int = 0
    useful: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.accesses, 1)

    @property
    def wasted(self) -> int:
        return self.prefetches - self.useful

    @property
    def pressure(self) -> float:
        """r: the mean union of a step ÷ the slots. Above 1 no cache holds a whole step."""
        return self.accesses / max(self.steps, 1) / self.slots

    def gap(self, best: Outcome) -> float:
        """The share of the loads that `best` (Belady) would have saved."""
        return (self.loads - best.loads) / max(self.loads, 1)


class AccessGroup(NamedTuple):
    """Layers that are judged together: one, or all of a step where each has slots of its own."""

    step: int
    keys: np.ndarray
    hinted: np.ndarray
    """Keys that were hinted for these layers, in time for them."""
    next_hinted: np.ndarray
    """Keys that are hinted meanwhile, for the layer that follows."""
    begin: int
    """The tick before the event, when its prefetches are decided."""
    now: int
    """The tick at which its misses are decided."""


def make_cache(sharing: Sharing, uses: Uses, slots: int) -> Cache:
    """An empty cache of `slots` slots in all."""
    kind = PoolCache if sharing == "pool" else LayerCaches
    return kind(uses.layers, uses.experts, slots)


def replay(
    uses: Uses,
    policy: Policy,
    cache: Cache,
    *,
    bypass: bool = False,
    hints: Hints | None = None,
    loads_per_layer: float = math.inf,
) -> Outcome:
    """Run all steps.

    With `bypass`, what an event asked for is kept only if it is worth more than something else. Every hinted expert is
    brought in before its event, at most `loads_per_layer` of them (what the link carries while a layer computes), and
    what is hinted for the same event never makes room.
    """
    run = _Run(uses, policy, cache, bypass, hints, loads_per_layer)
    for step in range(uses.steps):
        for event in run.events(step):
            run.perform(event)
        policy.used(uses.of(step), step)
    return Outcome(slots=cache.slots, steps=uses.steps, accesses=len(uses.keys), **run.counts)


class _Run:
    def __init__(
        self, uses: Uses, policy: Policy, cache: Cache, bypass: bool, hints: Hints | None, loads_per_layer: float
    ) -> None:
        self._uses, self._policy, self._cache, self._bypass = uses, policy, cache, bypass
        self._hints, self._loads_per_layer = hints, loads_per_layer
        self.counts = dict.fromkeys(("hits", "loads", "prefetches", "useful"), 0)

    def events(self, step: int) -> Iterator[AccessGroup]:
        """The layers one by one; all together where each has slots of its own, since then none matters to another
        (see `Policy`)."""
        uses, first = self._uses, step * self._uses.layers
        hinted = NOTHING if self._hints is None else self._hints.of(step)
        if isinstance(self._cache, LayerCaches):
            yield AccessGroup(step, uses.of(step), hinted, NOTHING, first - 1, first + uses.layers - 1)
            return
        hinted_by_layer = [*uses.split(hinted), NOTHING]
        for layer, keys in enumerate(uses.split(uses.of(step))):
            now = first + layer
            yield AccessGroup(step, keys, hinted_by_layer[layer], hinted_by_layer[layer + 1], now - 1, now)

    def perform(self, event: AccessGroup) -> None:
        brought = self._prefetch(event)
        self._policy.touched(event.keys, event.step)
        resident = self._cache.resident[event.keys]
        hits = int(np.count_nonzero(resident))
        self.counts["hits"] += hits
        self.counts["loads"] += len(event.keys) - hits
        self.counts["useful"] += len(np.intersect1d(brought, event.keys, assume_unique=True)) if len(brought) else 0
        if hits < len(event.keys):
            worth = self._policy.worth(event.now, event.now)
            self._cache.admit(event.keys, _protect(worth, event.next_hinted), self._bypass)

    def _prefetch(self, event: AccessGroup) -> np.ndarray:
        """Brings in what is hinted; returns the keys that came and stayed."""
        wanted = event.hinted[~self._cache.resident[event.hinted]]
        wanted = self._affordable(wanted, event)
        if not len(wanted):
            return NOTHING
        worth = _protect(self._policy.worth(event.begin, event.begin), event.hinted)
        worth.reshape(-1)[wanted] = WANTED_AHEAD
        self._cache.admit(wanted, worth, bypass=True)
        brought = wanted[self._cache.resident[wanted]]
        self.counts["prefetches"] += len(brought)
        self.counts["loads"] += len(brought)
        return brought

    def _affordable(self, wanted: np.ndarray, event: AccessGroup) -> np.ndarray:
        """The first ones of each layer, as many as the link carries while the layer before computes."""
        if not math.isfinite(self._loads_per_layer):
            return wanted
        layers = wanted // self._uses.experts
        place = np.arange(len(wanted)) - np.searchsorted(layers, layers)
        tick = event.step * self._uses.layers + layers
        carried = np.floor((tick + 1) * self._loads_per_layer) - np.floor(tick * self._loads_per_layer)
        return wanted[place < carried]


def _protect(worth: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if len(keys):
        worth = worth.copy()
        worth.reshape(-1)[keys] = PROTECTED
    return worth
