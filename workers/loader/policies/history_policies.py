"""Policies that judge by use counts and the last use alone: LRU, LFU, LFRU, Least-Stale, Ring."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from .base import discount, discount_of_share

LONG_AGO = -(1 << 50)
"""Step of the last use of an expert that was never used."""


class UseHistory:
    """Use counts and last use of every expert. Counts an expert at most once a step."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers, self._prior = layers, top_k / experts
        self._layer_of = np.arange(layers)[:, None]
        self.last_step = np.full((layers, experts), LONG_AGO)
        """int64 [layers, experts]: the last step that used the expert."""
        self.counts = np.zeros((layers, experts))
        """float64 [layers, experts]: the number of steps that used the expert."""
        self.steps = 0
        """Number of steps counted so far."""
        self.latest = LONG_AGO
        """Number of the last step counted."""

    def add(self, keys: np.ndarray, step: int) -> None:
        """Count that `step` used these experts, int64 [count], unless it is counted already."""
        last_step = self.last_step.reshape(-1)
        new = keys[last_step[keys] != step]
        last_step[new] = step
        self.counts.reshape(-1)[new] += 1
        self.steps += step != self.latest
        self.latest = step

    def share(self) -> np.ndarray:
        """Return the share of steps that used each expert, float64 [layers, experts].

        One more step is counted that used all experts alike, so the share is never quite 0.
        """
        return (self.counts + self._prior) / (self.steps + 1)

    def last_tick(self) -> np.ndarray:
        """Return the tick of the last use of each expert, int64 [layers, experts]."""
        return self.last_step * self._layers + self._layer_of

    def rounds(self, now: int) -> np.ndarray:
        """Return the whole rounds through the layers since the last use, int64 [layers, experts], at tick `now`.

        It is 0 for an expert that the last visit of its layer used.
        """
        return np.maximum(now - self.last_tick(), 0) // self._layers


class HistoryPolicy(ABC):
    """Base of a policy that judges by a `UseHistory` alone. A subclass writes `worth`."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers = layers
        self._layer_of = np.arange(layers)[:, None]
        self._history = UseHistory(layers, experts, top_k)

    def touched(self, keys: np.ndarray, step: int) -> None:
        """Count a use of these experts, int64 [count], in `step`."""
        self._history.add(keys, step)

    used = touched

    @abstractmethod
    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the worth of each expert, float64 [layers, experts]; see `Policy.worth`."""


class Lru(HistoryPolicy):
    """Least recently used: expects an expert to stay unused for as long again as it was already.

    The baseline of mixtral-offloading (arXiv 2312.17238) and of ExpertFlow's own comparisons ("Cache-MoE").
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the discount of the ticks since the last use, float64 [layers, experts]."""
        return discount(after - self._history.last_tick(), self._layers)


class Lfu(HistoryPolicy):
    """Least frequently used. Counts over the whole lifetime, evictions included.

    The layer's place in the round does not count.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the discount of the share of steps that used the expert, float64 [layers, experts]."""
        return discount(np.asarray(after - now), self._layers) * discount_of_share(self._history.share())


class Lfru(HistoryPolicy):
    """Lifetime count ÷ age, as in the evaluation of arXiv 2608.07911, where it was the best causal policy.

    There the age is the number of events (layers run) since the last use, plus one. Here it counts whole rounds through
    the layers. So the age is the same for the experts of one layer, and layers compare as if just visited.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the discount of the share divided by the age of the last use, float64 [layers, experts]."""
        age = 1.0 + self._layers * self._history.rounds(now)
        share = self._history.share() / age
        return discount(np.asarray(after - now), self._layers) * discount_of_share(share)


class LeastStale(HistoryPolicy):
    """Least-Stale of SpecMD (arXiv 2602.03921): two generations, each in the order in which its layers run.

    An expert is stale if the current pass has not used it. Stale experts are evicted first. Among them the layers that
    run first are evicted first: they were passed, and come up again last. Within a layer the least recently used expert
    is evicted first, so with a fixed number of slots a layer this is LRU.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the place in the eviction queue as a discount, float64 [layers, experts].

        The first to be evicted is worth a use two rounds away, the last one a use at once.
        """
        step = now // self._layers
        current = self._history.last_step >= step
        recent = 1 / (1.0 + np.maximum(step - self._history.last_step, 0))
        place = self._layers * current + self._layer_of + recent
        return discount(after - now + 2 * self._layers - place, self._layers)


class Ring(HistoryPolicy):
    """The order of SE-MoE (arXiv 2205.10034): the layer that comes up furthest away makes room, whatever its experts.

    Within a layer, where all experts are alike to the ring, the least recently used one is evicted first.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the discount of the layer's next visit, float64 [layers, experts]; idle experts a bit less."""
        visit = after + 1 + (self._layer_of - after - 1) % self._layers
        idle = self._history.rounds(now)
        return discount(visit - now + idle / (1.0 + idle), self._layers)
