"""What a forecast may look back on: the earlier tokens of a sequence, and what the latest of them say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Past:
    """Earlier tokens of one sequence, by position."""

    keys: np.ndarray
    """float32 [past, heads * key + key]: to attend to, and to copy from."""
    values: np.ndarray
    """float32 [past, code]"""
    routes: np.ndarray
    """[past, layers * top_k]: layer * experts + expert; means nothing where it is not known."""
    known: np.ndarray
    """bool [past]: the routing is known."""
    tokens: np.ndarray
    """int64 [past]: token ids."""
    positions: np.ndarray
    """int64 [past]"""

    def between(self, first: int, end: int) -> Past:
        """Only positions first … end − 1."""
        inside = (self.positions >= first) & (self.positions < end)
        return Past(*(getattr(self, name)[inside] for name in self.__dataclass_fields__))

    def followed_by(self, other: Past) -> Past:
        return Past(
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__)
        )


@dataclass(frozen=True)
class Recent:
    """What the tokens just before say to each of N tokens."""

    previous: np.ndarray
    """float32 [N, width]: 1 where the token before went, 0 elsewhere and where it is not known."""
    previous_code: np.ndarray
    """float32 [N, code]"""
    averages: np.ndarray
    """float32 [N, RECENT_DECAYS, width]: averages of the routing before; popularity where it is not known."""
    average_codes: np.ndarray
    """float32 [N, RECENT_DECAYS, code]"""
    known: np.ndarray
    """float32 [N, 1]: 1 if the routing of the token before is known, or none came before."""

    @staticmethod
    def of(parts: list[Recent]) -> Recent:
        """One after the other."""
        names = list(Recent.__dataclass_fields__)
        return Recent(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Asked:
    """Tokens of one sequence to forecast: places `first` … `end` − 1 of a batch, and the past they look at."""

    first: int
    end: int
    tokens: np.ndarray
    positions: np.ndarray
    past: Past
