"""How often each expert was used and when last: what most policies judge by."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

LONG_AGO = -(1 << 50)
"""Step of the last use of an expert that never was."""


class UseHistory:
    """Counts each expert at most once a step, however often it is mentioned."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers, self._prior = layers, top_k / experts
        self._layer_of = np.arange(layers)[:, None]
        self.last_step = np.full((layers, experts), LONG_AGO)
        """int64 [layers, experts]."""
        self.counts = np.zeros((layers, experts))
        """float64 [layers, experts]: the number of steps that used it."""
        self.steps = 0
        """Steps heard of."""
        self.latest = LONG_AGO
        """The last step heard of."""

    def add(self, keys: np.ndarray, step: int) -> None:
        """`step` has used these experts, in so far as that is not known yet."""
        last_step = self.last_step.reshape(-1)
        new = keys[last_step[keys] != step]
        last_step[new] = step
        self.counts.reshape(-1)[new] += 1
        self.steps += step != self.latest
        self.latest = step

    def share(self) -> np.ndarray:
        """float64 [layers, experts]: of all steps, those that used it; one step more is taken to have used all alike,
        so that it is never quite 0."""
        return (self.counts + self._prior) / (self.steps + 1)

    def last_tick(self) -> np.ndarray:
        """int64 [layers, experts]: when it was used last."""
        return self.last_step * self._layers + self._layer_of

    def rounds(self, now: int) -> np.ndarray:
        """int64 [layers, experts]: whole rounds through the layers since the last use, at tick `now`: 0 for an expert
        that the last visit of its layer used."""
        return np.maximum(now - self.last_tick(), 0) // self._layers


class HistoryPolicy(ABC):
    """A policy that judges by nothing else: all it is left to say is what an expert is worth."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers = layers
        self._layer_of = np.arange(layers)[:, None]
        self._history = UseHistory(layers, experts, top_k)

    def touched(self, keys: np.ndarray, step: int) -> None:
        self._history.add(keys, step)

    used = touched

    @abstractmethod
    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """As of `Policy`."""
