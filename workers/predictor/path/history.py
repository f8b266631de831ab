"""What a forecast may look back on: the earlier tokens of its sequence, and what the latest of them say.

Arrays begin with [rows, tokens]: many rows with one token each in decode, one row with many tokens in a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

NEVER = np.int64(1) << 40
"""Position of what is not there: later than all others, so nothing looks at it."""


@dataclass(frozen=True)
class TokenHistory:
    """Earlier tokens of some rows, in no order."""

    keys: np.ndarray
    """float32 [rows, past, heads * key + key]: to attend to, and to copy from."""
    values: np.ndarray
    """float32 [rows, past, code]"""
    routes: np.ndarray
    """uint16 [rows, past, layers * top_k]: layer * experts + expert; means nothing where it is not known."""
    known: np.ndarray
    """bool [rows, past]: the routing is known."""
    tokens: np.ndarray
    """int64 [rows, past]: token ids."""
    positions: np.ndarray
    """int64 [rows, past]: `NEVER` where there is nothing."""

    def since(self, first: int) -> TokenHistory:
        """Of a single row, only what stands at position `first` or later, or nowhere."""
        inside = self.positions[0] >= first
        return TokenHistory(*(getattr(self, field.name)[:, inside] for field in fields(self)))

    def followed_by(self, other: TokenHistory) -> TokenHistory:
        names = [field.name for field in fields(self)]
        return TokenHistory(*(np.concatenate([getattr(self, name), getattr(other, name)], axis=1) for name in names))


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

    def followed_by(self, other: Recent) -> Recent:
        names = [field.name for field in fields(self)]
        return Recent(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class Asked:
    """Tokens to forecast, and the past that those of each row look at."""

    tokens: np.ndarray
    """int64 [rows, tokens]"""
    positions: np.ndarray
    """int64 [rows, tokens]"""
    past: TokenHistory

    def distances(self) -> np.ndarray:
        """int64 [rows, tokens, past]: how many tokens ago."""
        return self.positions[:, :, None] - self.past.positions[:, None, :]

    def same(self) -> np.ndarray:
        """bool [rows, tokens, past]: the token id is the same."""
        return self.tokens[:, :, None] == self.past.tokens[:, None, :]
