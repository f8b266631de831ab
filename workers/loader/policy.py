"""Eviction policies: which resident expert is missed least. Keys are layer * experts + expert.

A policy only orders what is resident. Predictions overrule it (victims.py), so that it knows nothing of plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Policy(Protocol):
    """Hears of every expert that comes, is used or goes; names victims."""

    def loaded(self, key: int) -> None:
        """The expert has become resident."""
        ...

    def used(self, key: int, tick: int) -> None:
        """The expert, resident or not, was used at `tick` = step * layers + layer."""
        ...

    def evicted(self, key: int) -> None:
        """The expert is not resident any more."""
        ...

    def victims(self, tick: int) -> Iterator[int]:
        """All resident keys, the best to evict at `tick` first; not to be resumed after another call."""
        ...


class Lru:
    """Least recently used first; being loaded counts as a use."""

    def __init__(self) -> None:
        self._order: dict[int, None] = {}

    def loaded(self, key: int) -> None:
        self._order.pop(key, None)
        self._order[key] = None

    def used(self, key: int, tick: int) -> None:
        if key in self._order:
            self.loaded(key)

    def evicted(self, key: int) -> None:
        self._order.pop(key, None)

    def victims(self, tick: int) -> Iterator[int]:
        return iter(self._order)
