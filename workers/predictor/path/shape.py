"""The sizes of a path predictor."""

from __future__ import annotations

import msgspec


class PathShape(msgspec.Struct, frozen=True, kw_only=True):
    """What the arrays of a predictor file must fit."""

    layers: int
    experts: int
    top_k: int
    code: int = 128
    """Width of what stands for a token or for its routing."""
    hidden: int = 192
    inner: int = 384
    """Width inside a block."""
    blocks: int = 2
    heads: int = 4
    key: int = 16
    """Width of a head's keys and of the keys by which routing is copied."""
    window: int = 128
    """Earlier tokens of its sequence that a forecast looks at."""
    grams: int = 4096
    """Hashed pieces of token strings; 0: tokens are known by number only."""

    @property
    def width(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts
