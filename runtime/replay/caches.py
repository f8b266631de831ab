"""What is resident: fixed slots a layer, or one pool for all. Both decide as the loader's ledger does on a miss.

Ties go as in the ledger: of experts worth the same the one with the lowest key leaves first.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

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
