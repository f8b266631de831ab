"""The expert slots of a simulated replica: the union of each layer of a step is looked up, then admitted."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

import numpy as np

from ....workers.loader.policies import make_policy
from ...replay.atomic import PoolCache


class StepCounts(NamedTuple):
    """Counts of one step."""

    hits: int
    loads: int


class ExpertCache(Protocol):
    """Expert slots of one replica."""

    def run(self, keys: np.ndarray) -> StepCounts:
        """Run a step that uses these experts, int64 [n], ascending; return its hits and loads."""
        ...

    def held(self) -> np.ndarray:
        """Return bool [layers * experts]: which experts are in slots."""
        ...


class LruCache:
    """Evicts the least recently used expert. A dictionary: ten times as fast as `PolicyCache` with the policy lru."""

    def __init__(self, layers: int, experts: int, slots: int) -> None:
        self._slots = slots
        self._held: OrderedDict[int, None] = OrderedDict()
        self._flags = bytearray(layers * experts)
        """1 for each expert in a slot: `held` without a walk over the dictionary."""

    def run(self, keys: np.ndarray) -> StepCounts:
        held, flags, hits = self._held, self._flags, 0
        for key in keys.tolist():
            if key in held:
                hits += 1
                held.move_to_end(key)
            else:
                held[key], flags[key] = None, 1
                if len(held) > self._slots:
                    flags[held.popitem(last=False)[0]] = 0
        return StepCounts(hits, len(keys) - hits)

    def held(self) -> np.ndarray:
        return np.frombuffer(bytes(self._flags), dtype=bool)


class PolicyCache:
    """Evicts by a policy of the loader, layer by layer, as `expertflow replay` counts."""

    def __init__(self, policy: str, layers: int, experts: int, top_k: int, slots: int) -> None:
        self._policy = make_policy(policy, layers, experts, top_k)
        self._cache = PoolCache(layers, experts, slots)
        self._layers, self._experts, self._step = layers, experts, 0

    def run(self, keys: np.ndarray) -> StepCounts:
        hits = 0
        for layer, wanted in enumerate(np.split(keys, np.searchsorted(keys, self._bounds))):
            self._policy.touched(wanted, self._step)
            found = int(self._cache.resident[wanted].sum())
            hits += found
            if found < len(wanted):
                now = self._step * self._layers + layer
                self._cache.admit(wanted, self._policy.worth(now, now))
        self._policy.used(keys, self._step)
        self._step += 1
        return StepCounts(hits, len(keys) - hits)

    def held(self) -> np.ndarray:
        return self._cache.resident

    @property
    def _bounds(self) -> np.ndarray:
        return np.arange(1, self._layers) * self._experts


def make_expert_cache(policy: str, layers: int, experts: int, top_k: int, slots: int) -> ExpertCache:
    """Return empty slots. Raises UsageError for an unknown policy."""
    if policy == "lru":
        return LruCache(layers, experts, slots)
    return PolicyCache(policy, layers, experts, top_k, slots)
