"""Slots that refer to experts in the host store (link = dma): no byte of an expert is copied into them.

A transfer clears the reference of its slot when it is ordered and sets it when the emulated link has carried the
expert. So whoever reads a slot too early finds nothing there, as whoever reads it too late finds another expert.
"""

from __future__ import annotations

import numpy as np

REFERENCE_BYTES = 8
"""Size of a slot."""
NOTHING = 0
"""Reference of a slot that holds no whole expert; as shared memory is at first."""


class SlotReferences:
    """Key (layer * experts + expert) of the expert that each slot shows."""

    def __init__(self, memory: np.ndarray) -> None:
        """Read and write the slots in `memory`, uint8 [slots * REFERENCE_BYTES]."""
        self._references = memory.view(np.int64)

    def clear(self, slot: int) -> None:
        """Let the slot show nothing."""
        self._references[slot] = NOTHING

    def set(self, slot: int, key: int) -> None:
        """Let the slot show this expert."""
        self._references[slot] = key + 1

    def key(self, slot: int) -> int | None:
        """Return the key of the expert that the slot shows, None if it shows nothing."""
        reference = int(self._references[slot])
        return None if reference == NOTHING else reference - 1

    def are_home(self, first: int, count: int) -> bool:
        """Return whether each of `count` slots from `first` on exists and shows the expert whose key is its number."""
        keys = self._references[first : first + count] - 1
        return len(keys) == count and bool((keys == np.arange(first, first + count)).all())
