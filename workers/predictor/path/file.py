"""A path predictor on disk: weights and the token table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..base.predictor_file import Header, Stored, read_stored, write_stored
from .shape import PathShape

KIND = "path"


@dataclass(frozen=True)
class TokenCounts:
    """What the training sequences showed of single tokens."""

    counts: np.ndarray
    """uint8 [lines, layers * experts]: how often the token used the expert, of `seen` times."""
    seen: np.ndarray
    """uint8 [lines]"""
    tokens: np.ndarray
    """[lines]: token ids (int64), or their strings."""

    @property
    def named(self) -> bool:
        """Tokens are known by their strings."""
        return self.tokens.dtype.kind == "U"


@dataclass(frozen=True)
class PathFile:
    """A trained predictor."""

    header: Header[PathShape]
    weights: dict[str, np.ndarray]
    table: TokenCounts


def write_path(file: Path, predictor: PathFile) -> None:
    table = {f"table.{name}": getattr(predictor.table, name) for name in TokenCounts.__dataclass_fields__}
    write_stored(file, Stored(predictor.header, predictor.weights, table))


def read_path(file: Path) -> PathFile:
    """Raises UsageError if this is no path predictor of this version."""
    stored = read_stored(file, KIND, PathShape)
    table = {name: stored.named(f"table.{name}", str(file)) for name in TokenCounts.__dataclass_fields__}
    return PathFile(stored.header, stored.weights, TokenCounts(**table))
