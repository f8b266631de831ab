"""What each expert is worth keeping, from plans and policy together, and what therefore goes (R5).

Worth is the expected discount of the next use: nearly 1 for an expert that will be used at once, nearly 0 for one that
will not be used for long. Evicting what is used last is optimal when the future is known (L. A. Belady, 1966); here the
plans give chances for the coming steps, and the policy takes over behind their end.
"""

from __future__ import annotations

import numpy as np

from .advice import Advice
from .policies.base import Policy, discount
from .slots import NOW

MARGIN = 1.05
"""An expert to bring in must be worth so many times what goes for it."""


class Outlook:
    """Reads plans and policy; changes neither."""

    def __init__(self, layers: int, experts: int, advice: Advice, policy: Policy) -> None:
        self._layers, self._advice, self._policy = layers, advice, policy
        self._layer_of = np.arange(layers)[:, None]
        self._shape = (layers, experts)

    def for_needs(self, evictable: np.ndarray, count: int) -> list[int]:
        """Up to `count` of the `evictable` keys (bool by key): those worth least."""
        keys = np.flatnonzero(evictable)
        return keys[np.argsort(self._worth()[keys], kind="stable")[:count]].tolist()

    def for_prefetch(self, evictable: np.ndarray, key: int, due: int) -> tuple[int, int] | None:
        """The key to evict for bringing in `key` by tick `due`, and the tick after which it may go (or NOW).

        Never one that is worth as much, or is wanted at the same time: two such would evict each other for ever. An
        expert that will be used before `due` goes after that, so that slots roll forward.
        """
        keys = np.flatnonzero(evictable & ~self._is_wanted_at(due))
        if not len(keys):
            return None
        worth, free_from = self._worth(due), self._free_from(due)
        victim = int(keys[np.lexsort((free_from[keys], worth[keys]))[0]])
        return (victim, int(free_from[victim])) if worth[victim] * MARGIN < worth[key] else None

    def _worth(self, due: int = NOW) -> np.ndarray:
        """[layers * experts]; uses that are foretold before `due` do not count, since the expert may stay for them."""
        now = self._advice.position
        worth = self._policy.worth(now, self._advice.end)
        for plan in reversed(self._advice.plans):
            ticks = plan.step * self._layers + self._layer_of
            coming = (ticks > now) & ~((ticks < due) & (plan.chances >= self._advice.wanted_chance))
            chances = plan.chances * coming
            worth = chances * discount(ticks - now, self._layers) + (1 - chances) * worth
        return worth.ravel()

    def _free_from(self, due: int) -> np.ndarray:
        """[layers * experts]: the tick of the last use foretold before `due`, or NOW."""
        last = np.full(self._shape, NOW)
        for plan in self._advice.plans:
            ticks = plan.step * self._layers + self._layer_of
            foretold = (ticks > self._advice.position) & (ticks < due) & (plan.chances >= self._advice.wanted_chance)
            last = np.where(foretold, ticks, last)
        return last.ravel()

    def _is_wanted_at(self, due: int) -> np.ndarray:
        """bool [layers * experts]: foretold for tick `due`."""
        wanted = np.zeros(self._shape, dtype=bool)
        step, layer = divmod(due, self._layers)
        for plan in self._advice.plans:
            if plan.step == step:
                wanted[layer] = plan.chances[layer] >= self._advice.wanted_chance
        return wanted.ravel()
