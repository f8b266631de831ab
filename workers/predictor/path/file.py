"""A path predictor on disk: sizes, weights and the token table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from ..base.predictor_file import Header, Stored, read_stored, write_stored
from ..base.token_table import MAX_COUNTED

KIND = "path"
MAX_ENTRIES = 3_000_000
"""Nonzero counts that a file keeps: about a byte each, compressed. Tokens that were seen most come first."""
Size = Annotated[int, Meta(ge=1, le=1 << 16)]
MAX_WINDOW = 4096
"""Memory is reserved for so many tokens of each row."""
MAX_BYTES = 64 << 20
"""Memory of the trained token table."""


class PathShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a path predictor, which the arrays of its file fit. The names are those of the file's header."""

    layers: Size
    experts: Size
    top_k: Size
    code: Size = 128
    """Width of the embedding of a token or of its routing."""
    hidden: Size = 192
    inner: Size = 384
    """Width inside a block."""
    blocks: Size = 2
    heads: Size = 4
    key: Size = 16
    """Width of a head's keys and of the keys by which routing is copied."""
    window: Annotated[int, Meta(ge=1, le=MAX_WINDOW)] = 128
    """Earlier tokens of its sequence that a prediction looks at."""
    grams: Annotated[int, Meta(ge=0, le=1 << 24)] = 4096
    """Hash buckets for n-grams of token strings; 0: tokens are known by id only."""

    @property
    def width(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts


@dataclass(frozen=True)
class TokenCounts:
    """Counts of single tokens in the training sequences. The names are those of the file's arrays."""

    counts: np.ndarray
    """uint8 [lines, layers * experts]: how often the token used the expert, of `seen` times."""
    seen: np.ndarray
    """uint8 [lines]: sightings."""
    tokens: np.ndarray
    """[lines]: token ids (int64), or their strings."""

    @property
    def named(self) -> bool:
        """Tokens are known by their strings."""
        return self.tokens.dtype.kind == "U"


@dataclass(frozen=True)
class PathFile:
    """Content of a file: a trained path predictor."""

    header: Header[PathShape]
    weights: dict[str, np.ndarray]
    table: TokenCounts


def compact_counts(counts: np.ndarray, seen: np.ndarray, tokens: np.ndarray) -> TokenCounts:
    """Return the seen tokens, most frequent first, as far as the file's budget reaches, with counts scaled to bytes.

    `counts` [ids, width] and `seen` [ids] are those of `count_tokens`; `tokens` [ids] are the strings or ids by which
    the file knows them.
    """
    order = np.argsort(-seen, kind="stable")[: np.count_nonzero(seen)]
    entries = np.cumsum([np.count_nonzero(counts[token]) for token in order])
    order = order[: min(int(np.searchsorted(entries, MAX_ENTRIES, side="right")), MAX_BYTES // counts.shape[1])]
    scale = np.maximum(seen[order] / MAX_COUNTED, 1.0)
    scaled = np.rint(counts[order] / scale[:, None]).astype(np.uint8)
    return TokenCounts(scaled, np.minimum(seen[order], MAX_COUNTED).astype(np.uint8), tokens[order])


def write_path(file: Path, predictor: PathFile) -> None:
    """Create or replace the file."""
    table = {f"table.{name}": getattr(predictor.table, name) for name in TokenCounts.__dataclass_fields__}
    write_stored(file, Stored(predictor.header, predictor.weights, table))


def read_path(file: Path) -> PathFile:
    """Read a predictor. Raise UsageError if the file holds no path predictor of this version."""
    stored = read_stored(file, KIND, PathShape)
    table = {name: stored.array(f"table.{name}", str(file)) for name in TokenCounts.__dataclass_fields__}
    return PathFile(stored.header, stored.weights, TokenCounts(**table))
