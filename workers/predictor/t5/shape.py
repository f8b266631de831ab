"""The sizes of the paper's transformer."""

from __future__ import annotations

import msgspec

PAD, UNKNOWN, FIRST = 0, 1, 2
"""Numbers of the embedding: padding, tokens that were never seen, and the first of the others."""


class T5Shape(msgspec.Struct, frozen=True, kw_only=True):
    """T5 of 6 + 6 layers of width 32: 3.78 M parameters with a vocabulary of 32,128 (7.21 MB in half precision)."""

    layers: int
    experts: int
    top_k: int
    vocabulary: int
    """Numbers of the embedding."""
    width: int = 32
    inner: int = 2048
    blocks: int = 6
    heads: int = 8
    head: int = 64
    window: int = 512
    """Tokens that encoder and decoder see at most."""
