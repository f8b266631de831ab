"""What the spelling of a token says about one that was never seen: hashed pieces of its string."""

from __future__ import annotations

from zlib import crc32

import numpy as np

MAX_GRAMS = 24
SPACES = "Ġ▁ "
"""How tokenizers write that a word begins."""


def grams_of(text: str, buckets: int) -> np.ndarray:
    """int32 [MAX_GRAMS]: buckets of the pieces of a token's string; `buckets` itself stands for none."""
    places = [crc32(piece.encode()) % buckets for piece in _pieces(text)[:MAX_GRAMS]]
    return np.array(places + [buckets] * (MAX_GRAMS - len(places)), dtype=np.int32)


def _pieces(text: str) -> list[str]:
    """The word in lower case, its runs of 2 to 4 characters, its shape, and whether it begins a word."""
    bare = text.strip(SPACES)
    edged = f"<{bare.lower()}>"
    runs = [edged[start : start + size] for size in (2, 3, 4) for start in range(len(edged) - size + 1)]
    return [f"word {bare.lower()}", f"shape {_shape(bare)}", f"begins {text[:1] in SPACES}", *runs]


def _shape(text: str) -> str:
    return "".join(
        "9" if sign.isdigit() else "X" if sign.isupper() else "x" if sign.islower() else sign for sign in text[:4]
    )
