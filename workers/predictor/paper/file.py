"""The paper's predictor on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..stored import Header, Stored, read_stored, write_stored
from .shape import PaperShape

KIND = "paper"


@dataclass(frozen=True)
class PaperFile:
    """A trained predictor."""

    header: Header[PaperShape]
    weights: dict[str, np.ndarray]
    tokens: np.ndarray
    """[numbers]: the token ids (int64), or strings, that the embedding's numbers from `FIRST` on stand for."""


def write_paper(file: Path, predictor: PaperFile) -> None:
    write_stored(file, Stored(predictor.header, predictor.weights, {"tokens": predictor.tokens}))


def read_paper(file: Path) -> PaperFile:
    """Raises UsageError if this is no predictor of the paper's kind and of this version."""
    stored = read_stored(file, KIND, PaperShape)
    return PaperFile(stored.header, stored.weights, stored.named("tokens", str(file)))
