"""Event-atomic replay (arXiv 2608.07911): a layer of a step is one event.

The union of the batch's experts is looked up in the cache as it was when the event began, and admitted at its end.
Replaying the accesses one after another instead overstates some policies by a quarter and reverses their order.
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
ABSENT, HINTED, PROTECTED, DEMANDED = -1.0, 2.0, 3.0, 4.0
"""Scores beside worth, which lies from 0 to 1: resident experts that are hinted stay before those only hinted."""


class Cache(Protocol):
    """Experts in slots."""

    resident: np.ndarray
    """bool [layers * experts], by key."""
    slots: int
    """Slots of all layers together."""

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        """Admit all `wanted` keys (int64, ascending); of the other experts, those of least `worth` are evicted.

        `worth` is float64 [layers, experts]. If more keys are wanted than there are slots, the last ones stay. With
        `bypass`, a wanted expert is kept only if its worth earns a slot. Of equal worth, the lowest key is evicted
        first, as in the loader's ledger.
        """
        ...


class LayerCaches:
    """Cache with the same number of slots for each layer; the first layers have one more if the number is uneven."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self.slots = slots
        quota = slots // layers + (np.arange(layers) < slots % layers)
        self._within = np.arange(experts) >= experts - quota[:, None]
        """bool [layers, experts]: which ranks of a layer have a slot, the best rank last."""
        self.resident = np.zeros(layers * experts, dtype=bool)

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        """Implement `Cache.admit` within each layer; `wanted` int64 [n], `worth` float64 [layers, experts]."""
        scores = np.where(self.resident, worth.ravel(), ABSENT)
        missing = wanted[~self.resident[wanted]]
        scores[missing] = worth.ravel()[missing] if bypass else DEMANDED
        by_layer = scores.reshape(self._within.shape)
        kept = np.empty_like(self._within)
        np.put_along_axis(kept, np.argsort(by_layer, axis=1, kind="stable"), self._within, axis=1)
        self.resident[:] = (kept & (by_layer != ABSENT)).ravel()


class PoolCache:
    """Cache whose slots any expert of any layer may take."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self.slots = slots
        self.resident = np.zeros(layers * experts, dtype=bool)

    def admit(self, wanted: np.ndarray, worth: np.ndarray, bypass: bool = False) -> None:
        """Implement `Cache.admit` over all layers; `wanted` int64 [n], `worth` float64 [layers, experts]."""
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


class StepHints(Protocol):
    """Hints for every layer of a step, given while the layer before it runs."""

    def of(self, step: int) -> np.ndarray:
        """Return int64 [n]: the hinted keys of a step, ascending."""
        ...


class CountedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one replay. An access is an expert of the union of a layer of a step; a hit was resident then."""

    slots: int
    steps: int
    accesses: int
    hits: int
    loads: int
    """All loads. `prefetches` of them were caused by a hint, and `useful` of these were used as hinted."""
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
        """Return r: the mean union of a step ÷ the slots. Above 1 no cache holds a whole step."""
        return self.accesses / max(self.steps, 1) / self.slots

    def gap(self, best: CountedOutcome) -> float:
        """Return the share of the loads that `best` (Belady) would have saved."""
        return (self.loads - best.loads) / max(self.loads, 1)


class AccessGroup(NamedTuple):
    """Layers that one event looks up together: one layer, or all of a step if each has slots of its own."""

    step: int
    keys: np.ndarray
    hinted: np.ndarray
    """Keys that were hinted for these layers before the event."""
    next_hinted: np.ndarray
    """Keys that are hinted during the event, for the next layer."""
    begin: int
    """Tick before the event, at which its prefetches are decided."""
    now: int
    """Tick at which the event's misses are decided."""


def make_cache(sharing: Sharing, uses: Uses, slots: int) -> Cache:
    """Return an empty cache of `slots` slots in all."""
    cls = PoolCache if sharing == "pool" else LayerCaches
    return cls(uses.layers, uses.experts, slots)


def replay(
    uses: Uses,
    policy: Policy,
    cache: Cache,
    *,
    bypass: bool = False,
    hints: StepHints | None = None,
    loads_per_layer: float = math.inf,
) -> CountedOutcome:
    """Run all steps and return the counts.

    With `bypass`, a loaded expert is kept only if it is worth more than another one. Hinted experts are loaded before
    their event, at most `loads_per_layer` of them (what the link carries while a layer computes). A load never evicts
    an expert that is hinted for the same event.
    """
    run = _AtomicReplay(uses, policy, cache, bypass, hints, loads_per_layer)
    for step in range(uses.steps):
        for event in run.events(step):
            run.perform(event)
        policy.used(uses.of(step), step)
    return CountedOutcome(slots=cache.slots, steps=uses.steps, accesses=len(uses.keys), **run.counts)


class _AtomicReplay:
    def __init__(
        self, uses: Uses, policy: Policy, cache: Cache, bypass: bool, hints: StepHints | None, loads_per_layer: float
    ) -> None:
        self._uses, self._policy, self._cache, self._bypass = uses, policy, cache, bypass
        self._hints, self._loads_per_layer = hints, loads_per_layer
        self.counts = dict.fromkeys(("hits", "loads", "prefetches", "useful"), 0)

    def events(self, step: int) -> Iterator[AccessGroup]:
        """Yield the layers one by one; all together if each has slots of its own, since then they are independent
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
        prefetched = self._prefetch(event)
        self._policy.touched(event.keys, event.step)
        resident = self._cache.resident[event.keys]
        hits = int(np.count_nonzero(resident))
        self.counts["hits"] += hits
        self.counts["loads"] += len(event.keys) - hits
        if len(prefetched):
            self.counts["useful"] += len(np.intersect1d(prefetched, event.keys, assume_unique=True))
        if hits < len(event.keys):
            worth = self._policy.worth(event.now, event.now)
            self._cache.admit(event.keys, _protect(worth, event.next_hinted), self._bypass)

    def _prefetch(self, event: AccessGroup) -> np.ndarray:
        """Load hinted experts; return int64, the keys that were admitted."""
        wanted = event.hinted[~self._cache.resident[event.hinted]]
        wanted = self._affordable(wanted, event)
        if not len(wanted):
            return NOTHING
        worth = _protect(self._policy.worth(event.begin, event.begin), event.hinted)
        worth.reshape(-1)[wanted] = HINTED
        self._cache.admit(wanted, worth, bypass=True)
        loaded = wanted[self._cache.resident[wanted]]
        self.counts["prefetches"] += len(loaded)
        self.counts["loads"] += len(loaded)
        return loaded

    def _affordable(self, wanted: np.ndarray, event: AccessGroup) -> np.ndarray:
        """Return the first keys of each layer, as many as the link carries while the layer before computes."""
        if not math.isfinite(self._loads_per_layer):
            return wanted
        layers = wanted // self._uses.experts
        rank = np.arange(len(wanted)) - np.searchsorted(layers, layers)
        tick = event.step * self._uses.layers + layers
        carried = np.floor((tick + 1) * self._loads_per_layer) - np.floor(tick * self._loads_per_layer)
        return wanted[rank < carried]


def _protect(worth: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if len(keys):
        worth = worth.copy()
        worth.reshape(-1)[keys] = PROTECTED
    return worth
