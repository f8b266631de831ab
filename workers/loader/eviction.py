"""Ranks experts for eviction, by predictions and policy together (R5).

Worth is the expected discount of the next use, 0 to 1: nearly 1 for an expert that is used at once, nearly 0 for one
that stays unused for long. The least worth is evicted first. Evicting what is used last is optimal when the future is
known (L. A. Belady, 1966). A noisy prediction must not pick the victim. While its measured accuracy is low it only
protects the experts it names, and the policy alone ranks the others.
"""

from __future__ import annotations

import numpy as np

from .calibration import ACCURATE
from .policies.base import Policy, discount
from .prefetch_plan import PrefetchPlan
from .slots import NOW

MARGIN = 1.05
"""Factor by which a prefetched expert must be worth more than its victim."""


class EvictionRanking:
    """Reads prefetch plan and policy; changes neither. Call `refresh` whenever these have changed.

    Results by key are cached until then: slots change hands far more often, and there may be many keys.
    """

    def __init__(
        self, layers: int, experts: int, plan: PrefetchPlan, policy: Policy, rank_victims: str = "auto"
    ) -> None:
        """`rank_victims`: "always", "never" or "auto" (while predictions are accurate)."""
        self._layers, self._plan, self._policy, self._rank_victims = layers, plan, policy, rank_victims
        self._shape = (layers, experts)
        self._worths: dict[int, np.ndarray] = {}
        self._free: dict[int, np.ndarray] = {}
        self._unwanted: dict[int, np.ndarray] = {}
        self._discounts: dict[int, float] = {}

    def refresh(self) -> None:
        """Drop the cached results."""
        self._worths.clear()
        self._free.clear()
        self._unwanted.clear()
        self._discounts.clear()

    @property
    def ranks_victims(self) -> bool:
        """Return whether predictions rank the victims, or only protect experts."""
        measured = self._plan.calibration.accuracy >= ACCURATE
        return self._rank_victims == "always" or (self._rank_victims == "auto" and measured)

    def victims_for_misses(self, evictable: np.ndarray, count: int) -> list[int]:
        """Return up to `count` of the `evictable` keys (bool [layers * experts]), in the order of eviction.

        Experts that no prediction wants go first, by worth; then the wanted ones, the last due first, then by worth.
        """
        keys, worth = np.flatnonzero(evictable), self._worth(NOW)
        if self.ranks_victims:
            return keys[least_indices(worth[keys], count)].tolist()
        due = self._next_due()[keys]
        unwanted = keys[np.isinf(due)]
        if len(unwanted) >= count:
            return unwanted[least_indices(worth[unwanted], count)].tolist()
        return keys[np.lexsort((worth[keys], -due))[:count]].tolist()

    def victim_for_prefetch(self, evictable: np.ndarray, due: int) -> tuple[int, int] | None:
        """Return the key to evict for an expert due at tick `due`, and the tick after which it may go (or NOW).

        `evictable` is bool [layers * experts]. An expert that is wanted at the same time is never returned: two such
        would evict each other for ever. An expert that is used before `due` goes after that use, so slots roll forward.
        """
        keys = np.flatnonzero(evictable & self._unwanted_at(due))
        if not len(keys):
            return None
        worth, free_from = self._worth(due)[keys], self._free_from(due)
        least_worth = keys[worth == worth.min()]
        victim = int(least_worth[free_from[least_worth].argmin()])
        return victim, int(free_from[victim])

    def is_gain(self, key: int, due: int, victim: int) -> bool:
        """Return whether `key`, wanted at tick `due`, is worth more than its victim by `MARGIN`."""
        return self._worth(due)[victim] * MARGIN < self._worth_wanted(key, due)

    def _worth(self, due: int) -> np.ndarray:
        """Return the worth by key, float64 [layers * experts].

        Uses predicted before `due` do not count, since the expert may stay for them.
        """
        if due not in self._worths:
            worth = self._predicted_worth(due) if self.ranks_victims else self._policy_worth(due)
            self._worths[due] = worth.ravel()
        return self._worths[due]

    def _policy_worth(self, due: int) -> np.ndarray:
        now = self._plan.position
        worth = self._policy.worth(now, now)
        if due == NOW:
            return worth
        stays = (self._free_from(due) != NOW).reshape(self._shape)
        return np.where(stays, self._policy.worth(now, due), worth)

    def _predicted_worth(self, due: int) -> np.ndarray:
        now = self._plan.position
        worth = self._policy.worth(now, self._predicted_until())
        for plan in reversed(self._plan.plans):
            before = (plan.ticks < due) & (plan.chances >= self._plan.wanted_chance)
            chances = plan.chances * ((plan.ticks > now) & ~before)
            worth = chances * discount(plan.ticks - now, self._layers) + (1 - chances) * worth
        return worth

    def _predicted_until(self) -> np.ndarray:
        """Return the last predicted tick of each layer, or the position if there is none, int64 [layers, 1]."""
        until = np.full((self._layers, 1), self._plan.position)
        for plan in self._plan.plans:
            until = np.where(plan.known, np.maximum(until, plan.ticks), until)
        return until

    def _worth_wanted(self, key: int, due: int) -> float:
        """Return the worth of the expert to prefetch."""
        for plan in self._plan.plans:
            if plan.step == due // self._layers:
                return float(plan.chances.ravel()[key]) * self._discount(due)
        return float(self._worth(due)[key])

    def _discount(self, due: int) -> float:
        if due not in self._discounts:
            self._discounts[due] = float(discount(np.array(due - self._plan.position), self._layers))
        return self._discounts[due]

    def _next_due(self) -> np.ndarray:
        """Return the tick of the first predicted use, float64 [layers * experts], infinity where there is none."""
        due = np.full(self._shape, np.inf)
        for plan in reversed(self._plan.plans):
            rows = plan.rows_between(self._plan.position + 1, None)
            due[rows] = np.where(plan.chances[rows] >= self._plan.wanted_chance, plan.ticks[rows], due[rows])
        return due.ravel()

    def _free_from(self, due: int) -> np.ndarray:
        """Return the tick of the last use predicted before `due`, or NOW, int64 [layers * experts]."""
        if due not in self._free:
            last = np.full(self._shape, NOW)
            for plan in self._plan.plans:
                rows = plan.rows_between(self._plan.position + 1, due)
                last[rows] = np.where(plan.chances[rows] >= self._plan.wanted_chance, plan.ticks[rows], last[rows])
            self._free[due] = last.ravel()
        return self._free[due]

    def unpredicted(self) -> np.ndarray:
        """Return the keys that no prediction wants, bool [layers * experts]."""
        return np.isinf(self._next_due())

    def _unwanted_at(self, due: int) -> np.ndarray:
        """Return the keys not predicted for tick `due`, bool [layers * experts].

        Where predictions do not rank victims, keys predicted for later are not returned either.
        """
        if due not in self._unwanted:
            unwanted = np.ones(self._shape, dtype=bool)
            end = due + 1 if self.ranks_victims else None
            for plan in self._plan.plans:
                rows = plan.rows_between(max(due, self._plan.position + 1), end)
                unwanted[rows] &= plan.chances[rows] < self._plan.wanted_chance
            self._unwanted[due] = unwanted.ravel()
        return self._unwanted[due]


def least_indices(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices, intp [count], of the `count` least of `values` [n], in rising order.

    Of equal values the first is taken. Sorts only the candidates.
    """
    if count >= len(values):
        return np.argsort(values, kind="stable")
    near = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return near[np.argsort(values[near], kind="stable")[:count]]
