"""What each expert is worth keeping, from forecasts and policy together, and what therefore goes (R5).

Worth is the expected discount of the next use: nearly 1 for an expert that will be used at once, nearly 0 for one that
will not be used for long. Evicting what is used last is optimal when the future is known (L. A. Belady, 1966). A noisy
forecast must not choose who goes: while its measured accuracy is low it protects what it names, and among the others
the policy alone decides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .advice import Advice
from .policies.base import Policy, discount
from .reliability import ACCURATE
from .slots import NOW

MARGIN = 1.05
"""An expert to bring in must be worth so many times what goes for it."""


class Outlook:
    """Reads advice and policy; changes neither. `refresh` whenever these have changed."""

    def __init__(self, layers: int, experts: int, advice: Advice, policy: Policy, rank_victims: str = "auto") -> None:
        self._layers, self._advice, self._policy, self._rank_victims = layers, advice, policy, rank_victims
        self._shape = (layers, experts)
        self._worths: dict[int, np.ndarray] = {}

    def refresh(self) -> None:
        """Forget what was worked out."""
        self._worths.clear()

    @property
    def ranks_victims(self) -> bool:
        """Whether forecasts say who goes first, or only who stays."""
        measured = self._advice.reliability.accuracy >= ACCURATE
        return self._rank_victims == "always" or (self._rank_victims == "auto" and measured)

    def for_needs(self, evictable: np.ndarray, count: int) -> list[int]:
        """Up to `count` of the `evictable` keys (bool by key): what is not wanted goes before what is, and of that the
        last due first; then by worth."""
        keys = np.flatnonzero(evictable)
        if self.ranks_victims:
            order = np.argsort(self._worth(NOW)[keys], kind="stable")
        else:
            order = np.lexsort((self._worth(NOW)[keys], -self._next_due()[keys]))
        return keys[order[:count]].tolist()

    def for_prefetch(self, evictable: np.ndarray, key: int, due: int) -> tuple[int, int] | None:
        """The key to evict for bringing in `key` by tick `due`, and the tick after which it may go (or NOW).

        Never one that is worth as much, or is wanted at the same time: two such would evict each other for ever. An
        expert that will be used before `due` goes after that, so that slots roll forward.
        """
        wanted = self._due_at(due) if self.ranks_victims else self._due_from(due)
        keys = np.flatnonzero(evictable & ~wanted)
        if not len(keys):
            return None
        worth, free_from = self._worth(due), self._free_from(due)
        victim = int(keys[np.lexsort((free_from[keys], worth[keys]))[0]])
        return (victim, int(free_from[victim])) if worth[victim] * MARGIN < self._worth_wanted(key, due) else None

    def _worth(self, due: int) -> np.ndarray:
        """[layers * experts]; uses that are foretold before `due` do not count, since the expert may stay for them."""
        if due not in self._worths:
            worth = self._foretold_worth(due) if self.ranks_victims else self._policy_worth(due)
            self._worths[due] = worth.ravel()
        return self._worths[due]

    def _policy_worth(self, due: int) -> np.ndarray:
        now = self._advice.position
        worth = self._policy.worth(now, now)
        if due == NOW:
            return worth
        stays = (self._free_from(due) != NOW).reshape(self._shape)
        return np.where(stays, self._policy.worth(now, due), worth)

    def _foretold_worth(self, due: int) -> np.ndarray:
        now = self._advice.position
        worth = self._policy.worth(now, self._known_until())
        for plan in reversed(self._advice.plans):
            before = (plan.ticks < due) & (plan.chances >= self._advice.wanted_chance)
            chances = plan.chances * ((plan.ticks > now) & ~before)
            worth = chances * discount(plan.ticks - now, self._layers) + (1 - chances) * worth
        return worth

    def _known_until(self) -> np.ndarray:
        """int64 [layers, 1]: the last tick of each layer of which anything is foretold, or the position."""
        until = np.full((self._layers, 1), self._advice.position)
        for plan in self._advice.plans:
            until = np.where(plan.known, np.maximum(until, plan.ticks), until)
        return until

    def _worth_wanted(self, key: int, due: int) -> float:
        """Of the expert that is to be brought in."""
        for plan in self._advice.plans:
            if plan.step == due // self._layers:
                chance = float(plan.chances.ravel()[key])
                return chance * float(discount(np.array(due - self._advice.position), self._layers))
        return float(self._worth(due)[key])

    def _foretold(self, plan_ticks: np.ndarray, chances: np.ndarray) -> np.ndarray:
        return (plan_ticks > self._advice.position) & (chances >= self._advice.wanted_chance)

    def _next_due(self) -> np.ndarray:
        """[layers * experts]: the tick of the first use foretold, infinity where there is none."""
        due = np.full(self._shape, np.inf)
        for plan in reversed(self._advice.plans):
            due = np.where(self._foretold(plan.ticks, plan.chances), plan.ticks, due)
        return due.ravel()

    def _free_from(self, due: int) -> np.ndarray:
        """[layers * experts]: the tick of the last use foretold before `due`, or NOW."""
        last = np.full(self._shape, NOW)
        for plan in self._advice.plans:
            last = np.where(self._foretold(plan.ticks, plan.chances) & (plan.ticks < due), plan.ticks, last)
        return last.ravel()

    def _due_at(self, due: int) -> np.ndarray:
        """bool [layers * experts]: foretold for tick `due`."""
        return self._any_foretold(lambda ticks: ticks == due)

    def _due_from(self, due: int) -> np.ndarray:
        """bool [layers * experts]: foretold for tick `due` or later."""
        return self._any_foretold(lambda ticks: ticks >= due)

    def _any_foretold(self, when: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        wanted = np.zeros(self._shape, dtype=bool)
        for plan in self._advice.plans:
            wanted |= self._foretold(plan.ticks, plan.chances) & when(plan.ticks)
        return wanted.ravel()
