"""What each expert is worth keeping, from forecasts and policy together, and what therefore goes (R5).

Worth is the expected discount of the next use: nearly 1 for an expert that will be used at once, nearly 0 for one that
will not be used for long. Evicting what is used last is optimal when the future is known (L. A. Belady, 1966). A noisy
forecast must not choose who goes: while its measured accuracy is low it protects what it names, and among the others
the policy alone decides.
"""

from __future__ import annotations

import numpy as np

from .calibration import ACCURATE
from .policies.base import Policy, discount
from .prefetch_plan import PrefetchPlan
from .slots import NOW

MARGIN = 1.05
"""An expert to bring in must be worth so many times what goes for it."""


class EvictionRanking:
    """Reads advice and policy; changes neither. `refresh` whenever these have changed.

    What is worked out by key is kept until then: slots change hands far more often, and there may be many keys.
    """

    def __init__(
        self, layers: int, experts: int, advice: PrefetchPlan, policy: Policy, rank_victims: str = "auto"
    ) -> None:
        self._layers, self._prefetch_plan, self._policy, self._rank_victims = layers, advice, policy, rank_victims
        self._shape = (layers, experts)
        self._worths: dict[int, np.ndarray] = {}
        self._free: dict[int, np.ndarray] = {}
        self._unwanted: dict[int, np.ndarray] = {}
        self._discounts: dict[int, float] = {}

    def refresh(self) -> None:
        """Forget what was worked out."""
        self._worths.clear()
        self._free.clear()
        self._unwanted.clear()
        self._discounts.clear()

    @property
    def ranks_victims(self) -> bool:
        """Whether forecasts say who goes first, or only who stays."""
        measured = self._prefetch_plan.calibration.accuracy >= ACCURATE
        return self._rank_victims == "always" or (self._rank_victims == "auto" and measured)

    def for_needs(self, evictable: np.ndarray, count: int) -> list[int]:
        """Up to `count` of the `evictable` keys (bool by key): what is not wanted goes before what is, and of that the
        last due first; then by worth."""
        keys, worth = np.flatnonzero(evictable), self._worth(NOW)
        if self.ranks_victims:
            return keys[least(worth[keys], count)].tolist()
        due = self._next_due()[keys]
        unwanted = keys[np.isinf(due)]
        if len(unwanted) >= count:
            return unwanted[least(worth[unwanted], count)].tolist()
        return keys[np.lexsort((worth[keys], -due))[:count]].tolist()

    def for_prefetch(self, evictable: np.ndarray, due: int) -> tuple[int, int] | None:
        """The key to evict for bringing in another by tick `due`, and the tick after which it may go (or NOW).

        Never one that is wanted at the same time: two such would evict each other for ever. An expert that will be used
        before `due` goes after that, so that slots roll forward.
        """
        keys = np.flatnonzero(evictable & self._unwanted_at(due))
        if not len(keys):
            return None
        worth, free_from = self._worth(due)[keys], self._free_from(due)
        least_worth = keys[worth == worth.min()]
        victim = int(least_worth[free_from[least_worth].argmin()])
        return victim, int(free_from[victim])

    def gains(self, key: int, due: int, victim: int) -> bool:
        """Whether `key`, wanted at tick `due`, is worth more than what goes for it."""
        return self._worth(due)[victim] * MARGIN < self._worth_wanted(key, due)

    def _worth(self, due: int) -> np.ndarray:
        """[layers * experts]; uses that are foretold before `due` do not count, since the expert may stay for them."""
        if due not in self._worths:
            worth = self._foretold_worth(due) if self.ranks_victims else self._policy_worth(due)
            self._worths[due] = worth.ravel()
        return self._worths[due]

    def _policy_worth(self, due: int) -> np.ndarray:
        now = self._prefetch_plan.position
        worth = self._policy.worth(now, now)
        if due == NOW:
            return worth
        stays = (self._free_from(due) != NOW).reshape(self._shape)
        return np.where(stays, self._policy.worth(now, due), worth)

    def _foretold_worth(self, due: int) -> np.ndarray:
        now = self._prefetch_plan.position
        worth = self._policy.worth(now, self._known_until())
        for plan in reversed(self._prefetch_plan.plans):
            before = (plan.ticks < due) & (plan.chances >= self._prefetch_plan.wanted_chance)
            chances = plan.chances * ((plan.ticks > now) & ~before)
            worth = chances * discount(plan.ticks - now, self._layers) + (1 - chances) * worth
        return worth

    def _known_until(self) -> np.ndarray:
        """int64 [layers, 1]: the last tick of each layer of which anything is foretold, or the position."""
        until = np.full((self._layers, 1), self._prefetch_plan.position)
        for plan in self._prefetch_plan.plans:
            until = np.where(plan.known, np.maximum(until, plan.ticks), until)
        return until

    def _worth_wanted(self, key: int, due: int) -> float:
        """Of the expert that is to be brought in."""
        for plan in self._prefetch_plan.plans:
            if plan.step == due // self._layers:
                return float(plan.chances.ravel()[key]) * self._discount(due)
        return float(self._worth(due)[key])

    def _discount(self, due: int) -> float:
        if due not in self._discounts:
            self._discounts[due] = float(discount(np.array(due - self._prefetch_plan.position), self._layers))
        return self._discounts[due]

    def _next_due(self) -> np.ndarray:
        """[layers * experts]: the tick of the first use foretold, infinity where there is none."""
        due = np.full(self._shape, np.inf)
        for plan in reversed(self._prefetch_plan.plans):
            rows = plan.rows_between(self._prefetch_plan.position + 1, None)
            due[rows] = np.where(plan.chances[rows] >= self._prefetch_plan.wanted_chance, plan.ticks[rows], due[rows])
        return due.ravel()

    def _free_from(self, due: int) -> np.ndarray:
        """[layers * experts]: the tick of the last use foretold before `due`, or NOW."""
        if due not in self._free:
            last = np.full(self._shape, NOW)
            for plan in self._prefetch_plan.plans:
                rows = plan.rows_between(self._prefetch_plan.position + 1, due)
                last[rows] = np.where(
                    plan.chances[rows] >= self._prefetch_plan.wanted_chance, plan.ticks[rows], last[rows]
                )
            self._free[due] = last.ravel()
        return self._free[due]

    def _unwanted_at(self, due: int) -> np.ndarray:
        """bool [layers * experts]: not foretold for tick `due`, nor for later where forecasts do not rank victims."""
        if due not in self._unwanted:
            unwanted = np.ones(self._shape, dtype=bool)
            end = due + 1 if self.ranks_victims else None
            for plan in self._prefetch_plan.plans:
                rows = plan.rows_between(max(due, self._prefetch_plan.position + 1), end)
                unwanted[rows] &= plan.chances[rows] < self._prefetch_plan.wanted_chance
            self._unwanted[due] = unwanted.ravel()
        return self._unwanted[due]


def least(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` least values, in their order; of equal ones the first. Only what may be one is sorted."""
    if count >= len(values):
        return np.argsort(values, kind="stable")
    near = np.flatnonzero(values <= np.partition(values, count - 1)[count - 1])
    return near[np.argsort(values[near], kind="stable")[:count]]
